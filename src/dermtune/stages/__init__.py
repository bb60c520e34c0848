"""The six DVC stages: parse, load, call, write.

One word names each: DVC stage, module, function, section of params.yaml, command and Prefect task run.
"""
