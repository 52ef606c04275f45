"""White-box audits of the mechanisms: a lower bound on epsilon from the very code that trains.

An accountant says what a mechanism costs if its code does what the proof assumes. Here the code is
run, with patients who do not exist, and what it releases is held against that claim:

    canaries     who takes part, and how strongly what was released says so
    mechanisms   DP-SGD and votes, run by the functions and the ledger that sites use
    trade_offs   how well any test can tell a patient's presence, for each amount of noise
    bounds       lower bounds by Clopper-Pearson and by Gaussian differential privacy
    one_run      lower bounds from one run, free of assumptions on the noise's independence
    checks       what no lower bound shows: how noise is distributed, and what is accounted
    sampling_checks, verdicts    who is sampled; when a check does not hold
    audit        all of it together, and the verdict

An audit can show that a claim is false. It cannot show that one is true.

Sources: Nasr et al. 2023 (arXiv 2302.07956), Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846),
Mahloujifar, Melis & Chaudhuri 2024 (arXiv 2410.22235), Andrew et al. 2023 (arXiv 2302.03098),
Dong, Roth & Su 2022.
"""
