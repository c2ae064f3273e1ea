"""The data of the benchmarks: is it what it should be, and how does one come by it.

- `verify` judges a folder or counts: `places` finds it, `listing` reads it, `comparison` holds it
  against what `domainbed_carft.data.benchmarks` knows, `decoding` looks into the pictures;
- `download` fetches, `arrived` looks at what came, `unpack` and `prepare` make a data set of it;
- `commands` is ``carft data``.
"""
