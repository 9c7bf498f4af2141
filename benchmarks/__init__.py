"""`make bench`: what the product costs and how fast it is, measured from outside and compared within one run.

Load comes from a process of its own (http_load, grpc_load, bare_engine), which keeps raw bytes and their times while
the clock runs and parses them afterwards. scenarios says what is measured, servers starts what is measured, runner
goes through it in turns, targets judges, report and plots write docs/performance/.
"""
