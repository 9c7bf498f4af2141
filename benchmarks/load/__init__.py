"""Load clients: each is a process that receives a job, makes the load, and returns timelines.

point.py           one load as data, and the prompts that it consists of
job.py             messages between the benchmark and a load process
http_load.py       client for HTTP
grpc_load.py       client for Triton's gRPC
http_recording.py  HTTP requests as bytes, and recorded responses as timelines
"""
