"""`python -m benchmarks.write_path`: CPU time of the front end's process for an event and for a request, by layer.

The front end runs in this process with a generator that makes no tokens: it pushes one chunk into every stream from
one callback, 200 times a second, as a channel does. Clients are a process of their own on real sockets. The layers are
measured one on top of the other, so that the difference of two is what the upper one costs.
"""
