"""Creates report.html, which shows the results of a run on one page, from the answers that engine/predict/stored.py
stored at evaluation. figures computes the numbers, svg draws the plots, texts has the strings, and page combines
them."""
