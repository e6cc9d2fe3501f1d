"""The operations of a decoder layer, behind one seam with one back end per file.

Back ends repeat forwards without Python, from graphs:

    GraphBody          the function that is recorded: (inputs, Placement) -> Result
    GraphCache         the recorded bodies of one cache, by key
    Graph              one recorded call; `replay()` repeats it
    CudaGraph          a Graph on the GPU
    EagerGraph         a Graph for tests: the operations of a call, repeated one by one
    GraphPool          records the Graphs of one device, with one memory pool
    BucketGraph        a Graph with the padded input buffers of its bucket
    CpuGraph           a recorded forward of compiled kernels
    CpuGraphRecorder   records the kernels of a CpuGraph
"""
