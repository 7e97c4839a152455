def compare_runs(a, b):
    pass
