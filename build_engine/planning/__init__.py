"""Plans for both runtimes of TensorRT-LLM: the choice between them, and the tables of the documentation."""
