"""Creates report.html, a page with the results of a run, from the predictions that engine/predict/stored.py stored at
evaluation. figures computes the numbers, svg draws the plots, texts contains the strings, and page combines them."""
