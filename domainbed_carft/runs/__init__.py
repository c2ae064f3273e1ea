"""Using what was trained: `carft evaluate`, `carft predict`, `carft wise-ft`, `carft export`."""
