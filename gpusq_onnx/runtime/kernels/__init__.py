"""Quantised Linears as torch runs them on a GPU without TensorRT; importing anything below here imports torch.

    x_q[M, K]   INT8 codes of the input,  x = s_x x_q
    w_q[N, K]   INT8 codes of the weight, w[n, :] = s_w[n] w_q[n, :], at most 2 of each 4 along K not zero if sparse
    y[m, n]  =  alpha[n] sum_k x_q[m, k] w_q[n, k] + bias[n],     alpha[n] = s_x s_w[n]

The sum is an integer and exact (K 127² < 2³¹ up to K = 133 000), so this equals the Q/DQ graph up to the rounding of
the float operations around it. One module a way to do it: `dense` (`torch._int_mm`), `sparse` (cuSPARSELt through
`torch._cslt_sparse_mm`), `fused` (Triton, dense, with everything after the product in the same kernel), `float8`;
`choose` times what a device has and keeps the fastest. On a CPU `dense` is the reference path.
"""
