"""Triton glue of postprocess: chunks in, PostprocessStage, text out.

Decoupled, so that a chunk may have no answer: text that is held back, chunks behind a stop match, and all but the last
chunk of a request that does not stream, which Triton's own HTTP endpoint needs to be one response.
"""

from functools import partial

from llm_pipeline.engine_manifest import TOKENIZER_NAME
from llm_pipeline.flow_control import ChunkReports
from llm_pipeline.python_backend import DecoupledReply, guard, start_logging, stop_in_decode, tensor_reader
from llm_pipeline.settings import settings_of_model
from llm_pipeline.stages.postprocess import PostprocessStage
from llm_pipeline.tensors import decode_beside, text_chunk_to_arrays, token_chunk_from_arrays
from llm_pipeline.tokenizer import Tokenizer


class TritonPythonModel:
    """One instance, because chunks of one request must stay in order."""

    def initialize(self, args):
        start_logging()
        tokenizer = Tokenizer.load(settings_of_model(args).engine_dir / TOKENIZER_NAME)
        self._decode = decode_beside(args["model_name"])
        self._to_stop = []
        self._handled = []
        self._reports = ChunkReports()
        self._stage = PostprocessStage(tokenizer, self._to_stop.append)

    def execute(self, requests):
        for request in requests:
            reply = DecoupledReply(request)
            guard(reply, partial(self._handle, tensor_reader(request), reply))
        handled, self._handled = self._handled, []  # first, so that a report that fails is not made again for ever
        try:
            self._reports.send(handled)
        finally:
            while self._to_stop:  # after the answers: the clients of the batch do not wait for it
                stop_in_decode(self._decode, self._to_stop.pop())

    def _handle(self, read, reply):
        chunk = token_chunk_from_arrays(read)
        if chunk.report_to is not None:
            self._handled.append(chunk.report_to)
        piece = self._stage.handle(chunk)
        if piece is None:
            reply.finish()
        else:
            reply.send(text_chunk_to_arrays(piece), is_final=True)

    def finalize(self):
        self._reports.close()
