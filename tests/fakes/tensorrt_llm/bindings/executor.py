"""`tensorrt_llm.bindings.executor`: every class and enum of the API facts; Executor is backed by the fake engine."""

from tensorrt_llm.api import BINDINGS, make_bindings
from tensorrt_llm.executor_class import make_executor_class
from tensorrt_llm.script import read_script

globals().update(make_bindings())
Executor = make_executor_class(globals(), BINDINGS["Executor"])
__version__ = read_script().version
