"""From raw text to token shards, on datatrove: what `python -m hope_jax.data.build` does.

    yaml_file.py   YAML with variables of the environment
    manifest.py    the YAML that describes a mixture, checked
    plan.py        its files, tasks and stage keys
    folders.py     folders for datatrove, by path alone
    streams.py     bytes of plain and compressed files to records
    readers.py     records to documents
    filters.py     quality, language and length filters
    dedup.py       exact and near duplicates
    shard_step.py  documents to packed rows
    stages.py      what is done and verified is skipped, the rest is done
    executors.py   where tasks run
    workers.py     processes that work off tasks
    finish.py      manifests of the sources, statistics

All below plan.py but streams.py and workers.py import datatrove.
"""
