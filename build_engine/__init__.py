"""Turns a model into an engine directory that the server loads. Start with `python -m build_engine --help`.

The rooms, lowest first; an import never points to a higher one:

    errors, progress, model_names
    targets        the CPU, NVIDIA GPUs and their precisions
    artifact       the engine directory: publishing, result, and checks of files and tokenizer
    cpu            engines for CPUs, from GGUF files and Hugging Face directories; the only room that knows GGUF
    gpu            engines for NVIDIA GPUs, from Hugging Face directories: plans, and builds with TensorRT-LLM
    pytorch        model directories for TensorRT-LLM's PyTorch runtime, which compiles nothing
    planning       the choice between these two runtimes, and the tables of docs/engine-plans.md
    verification   all checks of a finished engine
    fleet          many engines from one file
    cli            the program; only these modules write to the terminal

A heavy library is imported by the step that uses it, so `--help` and `inspect` work without it.
"""
