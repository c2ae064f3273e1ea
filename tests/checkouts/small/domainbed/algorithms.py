ALGORITHMS = ["ERM"]


class Algorithm:
    pass


class ERM(Algorithm):
    pass


def get_algorithm_class(name):
    if name not in globals():
        raise NotImplementedError(name)
    return globals()[name]
