"""A corpus to vectors on disk: memory flat, cut off and gone on with at any moment, shared among processes.

Knows: documents, how far the files have come, and what an embedder is made of. Does not know: how a text becomes a
vector, nor how vectors are searched.

A finished folder holds three files, and stands under its name only when all three are whole:

- `vectors.npy`: (documents, dimensions), little-endian float32 or float16, C order, an ordinary NumPy file that
  `numpy.load(…, mmap_mode="r")` maps;
- `ids.jsonl`: a line per row of it, in the same order (the corpus's), `{"id": …}`, or `{"id": …, "text": …}` where
  texts were asked for;
- `manifest.json`: an object with
    - `format`: "broadsheet vectors 1",
    - `documents`, `dimensions`, `dtype` ("float32" or "float16"),
    - `normalized`: whether every vector has length 1,
    - `prompt`: the string put before each text, or null,
    - `texts`: whether `ids.jsonl` holds the texts,
    - `embedder`: `{"fingerprint": 16 hex digits, "dimensions": …, "model": its name, "similarity": "cosine" …,
      "modules": [{"module": class, "settings": …}, …]}`: see `identity`; equal fingerprints mean equal vectors,
    - `corpus`: what `Corpus.identity` says.

While it is being written, `OUT.partial/` stands beside it, one folder a shard. Documents are taken in chunks of a fixed
size, chunk k by shard k modulo n, and a chunk is encoded by itself: so neither where a run was cut off nor how many
processes shared the work changes a bit of the result.
"""
