"""The data of the benchmarks: is it what it should be, and how does one come by it."""
