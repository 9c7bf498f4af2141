"""Classifies upstream's errors by their text. Pure: upstream has no error classes, so the text is all there is.

Read in cpp/tensorrt_llm of NVIDIA/TensorRT-LLM, at b35ac1b6 (on the way to 1.2), and "Shutdown called" at 036a60f7
(before 1.0), too; not at the released tags, and not seen from a running engine:

* executor/executorImpl.cpp, enqueueRequests: "Maximum queue size of %d has been reached, please try again later". With
  an orchestrator it is an error response of the request instead (leaderRecvReqThread). Every method after the end:
  "Shutdown called".
* executorImpl.cpp, fetchNewRequests: "Encountered an error when fetching new request: ", if LlmRequest's constructor or
  validate() (batch_manager/llmRequest.cpp) rejects that one request.
* executorImpl.cpp, forwardAsync and forwardSync: "Encountered an error in forwardAsync function: ", for every running
  request at once; the engine then goes on as if nothing had happened.
* batch_manager/trtGptModelInflightBatching.cpp, executeContext: "Executing TRT engine failed!", without CUDA's words.
  The next step fails outside of upstream's catch (`getNewReqWithIds`): the process mostly ends with SIGABRT first.
* batch_manager/guidedDecoder.cpp, build: the words of xgrammar, "[15:04:05] /path/file.cc:75: ...", which may contain
  parts of a guide.
* include/tensorrt_llm/common/cudaUtils.h: "CUDA runtime error in %s: %s", with the text of cudaGetErrorString.
  runtime/utils/multiDeviceUtils.h: "Failed: NCCL error ...", "Failed: MPI error ...".

Only the first line is examined: common/tllmException.cpp appends file, line and a backtrace to the message, and the
function names in it can contain any text.
"""

from __future__ import annotations

import re

from llm_pipeline.executors.tensorrt_llm.engine import FailureKind

_QUEUE_FULL = re.compile(r"Maximum queue size of \d+ has been reached")
_SHUT_DOWN = re.compile(r"Shutdown called")
_PROMPT_TOO_LONG = re.compile(r"Prompt length \(\d+\) exceeds maximum input length")
_REFUSED = re.compile(r"Encountered an error when fetching new request: ")
# cudaGetErrorString of the errors after which "the process must be terminated and relaunched", according to the CUDA
# runtime's documentation: 700, 702, 710, 714 to 719, and the ECC and NVLink errors 214 and 220. After the first, every
# request gets the same error until the process is restarted (NVIDIA/TensorRT-LLM#2767).
_UNUSABLE = re.compile(
    r"illegal memory access was encountered|illegal instruction was encountered|device-side assert triggered"
    r"|unspecified launch failure|misaligned address|hardware stack error|invalid program counter"
    r"|not supported on global/shared address space|launch timed out and was terminated"
    r"|uncorrectable ECC error|uncorrectable NVLink error"
    r"|Failed[:,] (?:NCCL|MPI) error"
    r"|Executing TRT engine failed"
)
# What a guide makes xgrammar report may contain any text of its sender, so it must not decide the fate of the engine.
_OF_A_GUIDE = re.compile(r"Encountered an error in forward(?:Async|Sync) function: \[\d\d:\d\d:\d\d\] ")


def classify(message: str) -> FailureKind:
    """Returns the kind of failure; UNKNOWN unless the text is certain."""
    line = first_line(message)
    if _OF_A_GUIDE.match(line):
        return FailureKind.UNKNOWN
    if _UNUSABLE.search(line) or _SHUT_DOWN.search(line):
        return FailureKind.ENGINE
    if _QUEUE_FULL.search(line):
        return FailureKind.QUEUE_FULL
    if _PROMPT_TOO_LONG.search(line):
        return FailureKind.PROMPT_TOO_LONG
    return FailureKind.REQUEST if _REFUSED.match(line) else FailureKind.UNKNOWN


def first_line(message: str) -> str:
    """Returns the message without its backtrace."""
    return message.partition("\n")[0]
