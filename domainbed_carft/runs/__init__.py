"""Using what was trained: `carft evaluate`, `carft predict`, `carft wise-ft`, `carft export`.

- `saved`: a run from its folder or its file of weights;
- `data`: the splits that it was trained and evaluated on;
- `evaluating` (`metrics`, `passes`), `predicting` (`pictures`), `wise_ft` (`interpolation`,
  `wise_ft_folder`, `wise_ft_plot`) and `export` (`card`): what each command does;
- `commands` and `export_command`: the command lines.
"""
