"""What upstream's error texts mean. Pure: upstream has no classes for its errors, so the words are all there is.

Read in cpp/tensorrt_llm of NVIDIA/TensorRT-LLM, at b35ac1b6 (on the way to 1.2), and "Shutdown called" at 036a60f7
(before 1.0), too; not at the released tags, and not seen from a running engine:

* executor/executorImpl.cpp, enqueueRequests: "Maximum queue size of %d has been reached, please try again later". With
  an orchestrator it is an error response of the request instead (leaderRecvReqThread). Every method after the end:
  "Shutdown called".
* executorImpl.cpp, fetchNewRequests: "Encountered an error when fetching new request: ", which is what LlmRequest's
  constructor and validate() (batch_manager/llmRequest.cpp) have against that request alone.
* executorImpl.cpp, forwardAsync and forwardSync: "Encountered an error in forwardAsync function: ", for every running
  request at once; the engine then goes on as if nothing had been.
* include/tensorrt_llm/common/cudaUtils.h: "CUDA runtime error in %s: %s", with the words of cudaGetErrorString.
  runtime/utils/multiDeviceUtils.h: "Failed: NCCL error ...", "Failed: MPI error ...".

Only the first line is looked at: common/tllmException.cpp puts file, line and a backtrace behind the message, and the
names of functions in it hold any word.
"""

from __future__ import annotations

import re

from llm_pipeline.executors.tensorrt_llm.engine import Failure

_QUEUE_FULL = re.compile(r"Maximum queue size of \d+ has been reached")
_SHUT_DOWN = re.compile(r"Shutdown called")
_PROMPT_TOO_LONG = re.compile(r"Prompt length \(\d+\) exceeds maximum input length")
_REFUSED = re.compile(r"Encountered an error when fetching new request: ")
# cudaGetErrorString of the errors of which the CUDA runtime's documentation says that "the process must be terminated
# and relaunched": 700, 702, 710, 714 to 719, and the ECC and NVLink errors 214 and 220. After the first, every request
# gets the same error until the process is started again (NVIDIA/TensorRT-LLM#2767).
_UNUSABLE = re.compile(
    r"illegal memory access was encountered|illegal instruction was encountered|device-side assert triggered"
    r"|unspecified launch failure|misaligned address|hardware stack error|invalid program counter"
    r"|not supported on global/shared address space|launch timed out and was terminated"
    r"|uncorrectable ECC error|uncorrectable NVLink error"
    r"|Failed[:,] (?:NCCL|MPI) error"
)


def classify(words: str) -> Failure:
    """UNKNOWN for all that is not known for certain."""
    head = headline(words)
    if _UNUSABLE.search(head) or _SHUT_DOWN.search(head):
        return Failure.ENGINE
    if _QUEUE_FULL.search(head):
        return Failure.QUEUE_FULL
    if _PROMPT_TOO_LONG.search(head):
        return Failure.PROMPT_TOO_LONG
    return Failure.REQUEST if _REFUSED.match(head) else Failure.UNKNOWN


def headline(words: str) -> str:
    """The message without its backtrace."""
    return words.partition("\n")[0]
