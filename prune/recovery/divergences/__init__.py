"""How far a student's distribution is from its teacher's: one file each, with `divergence` and its gradient.

`divergence(log_p, log_q, q, beta)` takes (tokens, outcomes), p the teacher's and q the student's. It gives the
divergence of each token, (tokens,), and w = q * d/dq, (tokens, outcomes), up to a multiple of q: the gradient with
respect to the logits of q is then w - q * sum(w). Both are exactly 0 where p is q.
"""
