"""report.html: what a run learnt, in one page. Numbers in figures, pictures in svg, words in texts, all put together by
page; what they are made from is kept at the evaluation by answers."""
