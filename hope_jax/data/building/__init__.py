"""From raw text to token shards, on datatrove: what `python -m hope_jax.data.build` does.

    manifest.py    the YAML that describes a mixture, checked
    plan.py        its files, tasks and stage keys
    streams.py     bytes of plain and compressed files to records
    readers.py     records to documents
    filters.py     quality, language and length filters
    dedup.py       exact and near duplicates
    shard_step.py  documents to packed rows
    stages.py      executors, skipping, verification
    finish.py      manifests of the sources, statistics

Only readers, filters, dedup, shard_step and stages import datatrove.
"""
