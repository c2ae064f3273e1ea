"""Using what was trained: `carft evaluate`, `carft predict`, `carft wise-ft`, `carft export`.

- `saved`: a run from its folder or its file of weights;
- `data`: the splits that it was trained and evaluated on;
- `commands`: the command lines.
"""
