"""Sample texts for accuracy checks: prose, instructions, code, arithmetic, German and JSON, written for this purpose.

Few and short, so that a check takes minutes: enough to detect a broken engine, not to rank two working ones.
"""

from __future__ import annotations

TEXTS = (
    "The harbour was quiet before sunrise. Two fishing boats lay against the wall, and a man in a wool cap was "
    "sorting nets by the light of a lamp. He worked slowly: there was no hurry, and his hands were cold.",
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it is thinner and presses "
    "less on its surface. Cooks who live high up know that beans and potatoes need more time there.",
    "To sort a list of numbers, choose one of them, put the smaller ones to its left and the larger ones to its right, "
    "then sort both sides in the same way. When a side has only one number there is nothing left to do.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    total = 0\n"
    "    for value in values:\n        total += value\n    return total / len(values)\n",
    "Question: A train leaves at 9:40 and needs two hours and 35 minutes. When does it arrive?\n"
    "Answer: Two hours after 9:40 it is 11:40, and 35 minutes later it is 12:15. The train arrives at 12:15.",
    "Dear Ms Okafor, thank you for your letter of 3 March. We are sorry that the parcel came late and that one cup was "
    "broken. A new one was sent today, and you need not return the old one.",
    "Im Winter ist der See oft zugefroren, und die Kinder aus dem Dorf laufen nach der Schule darauf Schlittschuh. "
    "Erst wenn es dunkel wird, gehen sie nach Hause, wo es warm ist und nach Suppe riecht.",
    '{"name": "lamp", "price": 24.5, "in_stock": true, "tags": ["home", "light"]}\n'
    '{"name": "chair", "price": 80.0, "in_stock": false, "tags": ["home", "wood"]}',
)
