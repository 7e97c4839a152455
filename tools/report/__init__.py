"""report.html: the results of a run on one page. figures computes the numbers, svg draws plots, texts has the strings,
and page combines them. The input is the answers that engine/predict/answers.py stores at evaluation."""
