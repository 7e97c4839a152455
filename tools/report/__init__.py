"""report.html: the results of a run in one page. figures computes the numbers, svg draws plots, texts has the words,
and page combines them. The input comes from engine/predict/answers.py, which stores the answers at evaluation."""
