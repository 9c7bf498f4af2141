"""Model directories for TensorRT-LLM's PyTorch runtime, which compiles nothing. Plans are pure, like those of `gpu`.

    checkpoint/
      model_directory   reads config.json, the quantization, the weights' headers: everything a plan needs
      decoder           the shape of a model; families and hybrid_layers read it from config.json
      quantization      hf_quant_config.json and quantization_config
      stored_weights    sizes from the safetensors headers, compared with the index
    architectures       the architectures that upstream's PyTorch runtime knows, by release
    planning/
      formats           the quantizations that it loads, and the GPUs that compute them
      parameters        the matrices of a model, and the part of them on one GPU
      weights           their bytes, from the headers or from config.json
      kv_cache          bytes of keys, values and states
      memory            all of it on each GPU
      constraints       the reasons why a directory can't be served
      planner           all of these together; plan_json exports a plan
    trtllm              every call into TensorRT-LLM; the only module here that imports it
    verification/       links, configuration against manifest, and a load test in a child process
    building/
      source_files      the files that an engine directory takes over; refuses incomplete directories
      source_checks     refuses complete ones that can't be served: own code, sizes, tokenizer
      publish           links or copies them
      run               all of these, from an accepted plan to the published directory; manifest describes it

Not run on TensorRT-LLM: no machine with it was available. Statements about it come from its public sources.
"""
