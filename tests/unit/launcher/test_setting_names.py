"""Misspelt settings are found, and variables of other programs are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.setting_names import (
    known_settings,
    misspelt_settings,
    similar_setting,
    unknown_make_variables,
    unknown_message,
)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("PROT", "PORT"),
        ("MODLE", "MODEL"),
        ("ENGINEDIR", "ENGINE_DIR"),
        ("MODEL_NAMES", "MODEL_NAME"),
        ("CPU_KV_CACHE_GB", "CPU_KV_CACHE_GIB"),
        ("Triton_Http_Prot", "TRITON_HTTP_PORT"),
    ],
)
def test_near_miss_in_the_environment_is_found(name: str, setting: str) -> None:
    assert misspelt_settings([name, "PATH"]) == {name: setting}


# What is set on ordinary machines, in CI, and for other services.
OTHERS = (
    "PATH HOME USER SHELL TERM LANG PWD HOST HOSTNAME HOSTTYPE LOGNAME EDITOR MAIL DISPLAY OLDPWD SHLVL TZ _ "
    "HF_API_KEY DD_API_KEY OPENAI_API_KEY NGC_API_KEY XAI_API_KEY EXECUTOR_NUMBER SSH_CLIENT LD_LIBRARY_PATH "
    "MAKEFLAGS MAKELEVEL MFLAGS PYTHONPATH VIRTUAL_ENV KUBERNETES_SERVICE_PORT KUBERNETES_PORT HF_HOME CI BUILD_ID "
    "NVIDIA_VISIBLE_DEVICES CUDA_VERSION OMP_NUM_THREADS XDG_RUNTIME_DIR NO_PROXY HTTP_PROXY LS_COLORS PS1 POST AUTHOR"
)


def test_variables_of_other_programs_are_left_alone() -> None:
    assert misspelt_settings(OTHERS.split()) == {}


@given(st.sampled_from(sorted(known_settings())), st.booleans())
def test_settings_themselves_are_no_near_miss(name: str, is_lower: bool) -> None:
    assert misspelt_settings([name.lower() if is_lower else name]) == {}


@given(st.sampled_from([name for name in sorted(known_settings()) if len(name) > 7]), st.data())
def test_two_letters_in_the_wrong_order_are_found(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 2))
    swapped = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    assert similar_setting(swapped) in known_settings()
    if swapped not in known_settings():
        assert swapped in misspelt_settings([swapped]) or swapped.endswith(tuple(f"_{s}" for s in known_settings()))


@pytest.mark.parametrize(
    ("flags", "unknown"),
    [
        ("", []),
        ("s -j2 --jobserver-auth=3,4", []),
        (" -- PORT=9001", []),
        (" -- PYTHON=python3.11 PROT=1 PORT=9001", ["PROT"]),
        (r" -- MODEL=my\ model\ PROT=2.gguf", []),
        ("k -- FOO:=1", ["FOO"]),
        (r" -- API_KEY=it's\ $$x", []),
    ],
)
def test_variables_on_the_command_line_of_make(flags: str, unknown: list[str]) -> None:
    assert unknown_make_variables(flags) == unknown


def test_message_names_the_setting_that_was_meant() -> None:
    assert unknown_message("PROT") == "PROT is not a setting. Did you mean PORT?"
    assert "docs/settings.md" in unknown_message("XYZZYX")
