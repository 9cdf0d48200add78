"""A run's report, or several runs' comparison, as one page: `python -m scripts.tools.report --help`.

run_data     a run's folder as it was left, with what is missing in it
curves       what was recorded in training, step by step
statistics   confusion, calibration, intervals: numpy alone
figures      drawings that follow the page's colours, and are PNGs too
matrix       the confusion matrix, which can be pointed at
examples     frames of clips
page         sections -> one self-contained file
run_figures  the curves of one run
hand_section what the report says of one hand
run_page     what the report of one run says
browser      a Chromium, for tests and the docs' picture
comparison   what the comparison of several says
"""
