"""What each of torch's functions does with a value that another rank holds. What is not in this table raises Unsupported.

A meta tensor is no guard by itself: `ones(3).add_(meta)` does nothing, `multinomial` on meta draws nothing, meta tensors
print and pickle. So a function is allowed by name, once it is known to do on meta what it does on values: give the same
shapes, dtypes and graph edges, and change the same arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Asks for what every rank knows: shapes, dtypes, flags.
KNOWN = _names("""
    size dim ndimension numel nelement __len__ stride is_contiguous element_size storage_offset is_floating_point
    is_complex is_signed is_conj is_neg is_inference is_pinned _is_view is_same_size is_tensor result_type can_cast
    requires_grad_ retain_grad __hash__ __delete__ get_device is_distributed is_coalesced dim_order
    _has_compatible_shallow_copy_type _use_new_zipfile_serialization promote_types untyped_storage is_shared
""")

# Gives Python a value: it is sent to all ranks.
VALUE = _names("""
    item tolist __bool__ __float__ __int__ __index__ __complex__ __nonzero__ __long__ __contains__ __array__ numpy
    equal allclose is_nonzero __reduce_ex__
""")

# The operators below torch's functions by which it does.
READING_OPERATORS = frozenset({"_local_scalar_dense", "equal", "is_nonzero"})

# So does this, if it is given tensors.
FACTORY = _names("tensor as_tensor asarray scalar_tensor arange full linspace logspace")
READ = VALUE | FACTORY

# Others see the same memory: what is written to it there, torch does not see.
TO_MEMORY = _names("numpy __array__ __dlpack__")
FROM_MEMORY = _names("as_tensor asarray")  # and what `patches` replaces, of which a mode is not told

# Writes a value as text, by the rank that holds it.
SHOW = _names("__repr__ __format__ __str__")

# Makes a new tensor on the rank of its first operand.
LIKE = _names("""
    empty_like zeros_like ones_like full_like rand_like randn_like randint_like
    new_empty new_zeros new_ones new_full new_tensor new_empty_strided
""")

# Changes dtype or device.
CAST = _names("""
    to cpu cuda type pin_memory type_as bfloat16 bool byte cdouble cfloat chalf char double float half int long short
""")

# Its result's size depends on values, or meta cannot do it: the owner tells what it got.
SIZED = _names("""
    nonzero nonzero_static argwhere masked_select unique unique_consecutive _unique2 bincount repeat_interleave one_hot
    linalg_lstsq linalg_eig linalg_eigvals histogram geqrf unravel_index istft combinations corrcoef cov ctc_loss
    gaussian_nll_loss
""")

# Draws random numbers, as many as its operands' shapes say.
DRAW = _names("""
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout native_dropout dropout_
    bernoulli bernoulli_ normal normal_ uniform_ random_ exponential_ geometric_ cauchy_ log_normal_ multinomial
    gumbel_softmax fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices
    fractional_max_pool3d_with_indices
    trunc_normal_ _no_grad_trunc_normal_ kaiming_uniform_ kaiming_normal_ xavier_uniform_ xavier_normal_ orthogonal_
""")

# Draws random numbers inside one call, beside other work.
DRAW_WITHIN = _names("scaled_dot_product_attention multi_head_attention_forward lstm gru rnn_tanh rnn_relu")

# Every rank does it on all values: draws as many random numbers as values say, or gives sizes that Python uses.
EVERYWHERE = _names("""
    poisson binomial _standard_gamma _sample_dirichlet rrelu pca_lowrank svd_lowrank
    _pack_padded_sequence _pad_packed_sequence
""")

# Takes whole numbers that may come as tensors: torch reads them into Python.
NUMBERED = _names("""
    narrow select tensor_split split chunk view reshape expand broadcast_to repeat tile roll unfold topk kthvalue
""")

SUBJECTS = _names("input self tensor out")  # their arguments that are tensors

# A view of its first operand, or a copy, in the shape of the second, whose values do not matter.
SHAPED = _names("expand_as view_as reshape_as")

# A view of each operand, in a shape that all of them make.
EACH = _names("broadcast_tensors meshgrid atleast_1d atleast_2d atleast_3d")

# Changes these operands beside giving a result, if it is asked to: by which parameter, and what that is where it is not given.
_STATISTICS, _WEIGHT = ("running_mean", "running_var"), ("weight",)
CHANGES = {
    "batch_norm": (_STATISTICS, "training", False),
    "instance_norm": (_STATISTICS, "use_input_stats", True),
    "embedding": (_WEIGHT, "max_norm", None),
    "embedding_bag": (_WEIGHT, "max_norm", None),
}
_NORM = ("input", "weight", "bias", "running_mean", "running_var")
_PARAMETERS = {torch.batch_norm: (*_NORM, "training"), torch.instance_norm: (*_NORM, "use_input_stats")}

# Computes tensors from tensors; shapes depend on shapes alone. In place by the usual marks in the name.
PLAIN = _names("""
    _unsafe_view clone __deepcopy__ _is_all_true _is_any_true __add__ __and__ __div__ __eq__ __floordiv__ __ge__ __getitem__ __gt__
    __iadd__ __iand__ __idiv__ __ifloordiv__ __ilshift__ __imod__ __imul__ __invert__ __ior__ __irshift__ __isub__
    __iter__ __ixor__ __le__ __lshift__ __lt__ __matmul__ __mod__ __mul__ __ne__ __neg__ __or__ __pow__ __radd__
    __rand__ __rdiv__ __rfloordiv__ __rlshift__ __rmatmul__ __rmod__ __rmul__ __ror__ __rpow__ __rrshift__ __rshift__
    __rsub__ __rxor__ __setitem__ __sub__ __truediv__ __xor__ _autocast_to_full_precision
    _autocast_to_reduced_precision _threshold _weight_norm _weight_norm_interface abs abs_ absolute absolute_ acos
    acos_ acosh acosh_ adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool1d_with_indices adaptive_max_pool2d adaptive_max_pool2d_with_indices adaptive_max_pool3d
    adaptive_max_pool3d_with_indices add add_ addbmm addbmm_ addcdiv addcdiv_ addcmul addcmul_ addmm addmm_ addmv
    addmv_ addr addr_ adjoint affine_grid affine_grid_generator alias_copy all amax amin aminmax angle any arccos
    arccos_ arccosh arccosh_ arcsin arcsin_ arcsinh arcsinh_ arctan arctan2 arctan2_ arctan_ arctanh arctanh_ argmax
    argmin argsort as_strided as_strided_copy as_strided_scatter asin asin_ asinh asinh_ atan atan2 atan2_ atan_ atanh
    atanh_ avg_pool1d avg_pool2d avg_pool3d baddbmm baddbmm_ batch_norm bilinear
    binary_cross_entropy binary_cross_entropy_with_logits bitwise_and bitwise_and_ bitwise_left_shift
    bitwise_left_shift_ bitwise_not bitwise_not_ bitwise_or bitwise_or_ bitwise_right_shift bitwise_right_shift_
    bitwise_xor bitwise_xor_ block_diag bmm broadcast_to bucketize cartesian_prod cat cdist ceil
    ceil_ celu celu_ chain_matmul channel_shuffle cholesky cholesky_inverse cholesky_solve chunk clamp clamp_
    clamp_max clamp_max_ clamp_min clamp_min_ clip clip_ column_stack complex concat concatenate conj conj_physical
    conj_physical_ constant_ constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d conv_transpose3d convolution copy_ copysign copysign_ cos cos_ cosh cosh_ cosine_embedding_loss
    cosine_similarity count_nonzero cross cross_entropy cummax cummin cumprod cumprod_ cumsum cumsum_
    cumulative_trapezoid deg2rad deg2rad_ det detach detach_ detach_copy diag diag_embed diagflat diagonal
    diagonal_copy diagonal_scatter diff digamma digamma_ dirac_ dist div div_ divide divide_ dot dsplit dstack einsum
    elu elu_ embedding embedding_bag eq eq_ erf erf_ erfc erfc_ erfinv erfinv_ exp exp2 exp2_ exp_ expand
    expand_copy expm1 expm1_ eye_ fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft
    fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft
    fft_rfft2 fft_rfftn fill_ fill_diagonal_ fix fix_ flatten flip fliplr flipud float_power float_power_ floor floor_
    floor_divide floor_divide_ fmax fmin fmod fmod_ fold frac frac_ frexp frobenius_norm gather gcd gcd_ ge ge_ gelu
    ger glu gradient greater greater_ greater_equal greater_equal_ grid_sample grid_sampler grid_sampler_2d
    grid_sampler_3d group_norm gru_cell gt gt_ hardshrink hardsigmoid hardswish hardtanh hardtanh_ heaviside
    heaviside_ hinge_embedding_loss histc hsplit hstack huber_loss hypot hypot_ i0 i0_ igamma igamma_ igammac igammac_
    imag index index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_reduce
    index_reduce_ index_select inner instance_norm interpolate inverse isclose isfinite isin isinf isnan isneginf
    isposinf isreal kl_div kron kthvalue l1_loss layer_norm lcm lcm_ ldexp ldexp_ le le_ leaky_relu leaky_relu_ lerp
    lerp_ less less_ less_equal less_equal_ lgamma lgamma_ linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross
    linalg_det linalg_diagonal linalg_eigh linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex
    linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lu linalg_lu_factor linalg_lu_factor_ex
    linalg_lu_solve linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power linalg_matrix_rank
    linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex
    linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot
    linalg_vector_norm linear local_response_norm log log10 log10_ log1p log1p_ log2 log2_ log_ log_sigmoid
    log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_and_ logical_not logical_not_ logical_or
    logical_or_ logical_xor logical_xor_ logit logit_ logsumexp lp_pool1d lp_pool2d lp_pool3d lstm_cell lt lt_ lu
    lu_solve lu_unpack margin_ranking_loss masked_fill masked_fill_ masked_scatter masked_scatter_ matmul matrix_exp
    matrix_power max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d maximum mean median min minimum mish mm
    mode moveaxis movedim mse_loss msort mul mul_ multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss
    multiply multiply_ mv mvlgamma mvlgamma_ nan_to_num nan_to_num_ nanmean nanmedian nanquantile nansum narrow
    narrow_copy native_channel_shuffle native_group_norm native_layer_norm native_norm ne ne_ neg neg_ negative
    negative_ new_tensor nextafter nextafter_ nll_loss norm norm_except_dim normalize not_equal not_equal_
    nuclear_norm ones_ orgqr ormqr outer pad pairwise_distance pdist permute permute_copy pinverse pixel_shuffle
    pixel_unshuffle poisson_nll_loss polar polygamma polygamma_ positive pow pow_ prelu prod put put_ qr quantile
    rad2deg rad2deg_ ravel real reciprocal reciprocal_ relu relu6 relu6_ relu_ remainder remainder_ renorm renorm_
    repeat reshape resolve_conj resolve_neg rms_norm rnn_relu_cell rnn_tanh_cell roll rot90 round round_
    row_stack rsqrt rsqrt_ rsub scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ searchsorted
    select select_copy select_scatter selu selu_ sgn sgn_ sigmoid sigmoid_ sign sign_ signbit silu sin sin_ sinc sinc_
    sinh sinh_ slice_copy slice_inverse slice_scatter slogdet smooth_l1_loss soft_margin_loss softmax softmax2d
    softmin softplus softshrink softsign sort special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0
    special_bessel_y1 special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
    special_chebyshev_polynomial_w special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv
    special_exp2 special_expit special_expm1 special_gammainc special_gammaincc special_gammaln
    special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e special_i1 special_i1e
    special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p special_log_ndtr special_log_softmax
    special_logit special_logsumexp special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
    special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri special_polygamma special_psi
    special_round special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
    special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_sinc special_softmax
    special_spherical_bessel_j0 special_xlog1py special_xlogy special_zeta split split_copy split_with_sizes
    split_with_sizes_copy sqrt sqrt_ square square_ squeeze squeeze_ squeeze_copy stack std std_mean stft sub sub_
    subtract subtract_ sum sum_to_size svd swapaxes swapaxes_ swapdims swapdims_ t t_ t_copy take take_along_dim tan
    tan_ tanh tanh_ tanhshrink tensor_split tensordot threshold threshold_ tile topk trace transpose transpose_
    transpose_copy trapezoid trapz triangular_solve tril tril_ triplet_margin_loss triplet_margin_with_distance_loss
    triu triu_ true_divide true_divide_ trunc trunc_ unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk
    unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_ unsqueeze_copy upsample upsample_bilinear
    upsample_nearest vander var var_mean vdot view view_as_complex view_as_real view_as_real_copy view_copy
    vsplit vstack where xlogy xlogy_ zero_ zeros_
""")

PROPERTIES_KNOWN = _names("""
    shape ndim dtype layout requires_grad grad_fn is_leaf retains_grad output_nr itemsize nbytes names name _version
    is_sparse is_sparse_csr is_quantized is_mkldnn is_nested is_complex _backward_hooks _post_accumulate_grad_hooks
    __dict__ is_cuda is_xpu is_mps is_ipu is_mtia is_vulkan is_xla is_hpu is_ort is_maia _cdata
""")
PROPERTIES_TENSOR = _names("grad data T mT H mH real imag _base _grad")

KINDS: dict[str, str] = {
    name: kind
    for kind, names in {
        "plain": PLAIN,
        "known": KNOWN,
        "read": READ,
        "show": SHOW,
        "like": LIKE,
        "cast": CAST,
        "sized": SIZED,
        "draw": DRAW,
        "draw within": DRAW_WITHIN,
        "everywhere": EVERYWHERE,
        "shaped": SHAPED,
        "each": EACH,
    }.items()
    for name in names
}

_NOT_IN_PLACE = _names("__invert__ __index__ __int__ __iter__")


def in_place(name: str) -> bool:
    """Whether a function of this name changes its first operand: `add_`, `__iadd__`, `__setitem__`."""
    if name in _NOT_IN_PLACE:
        return False
    return name == "__setitem__" or (name.startswith("__i") if name.endswith("__") else name.endswith("_"))


def may_write(function: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call may change some operand."""
    return in_place(name) or name in CHANGES or "out" in kwargs or asked_in_place(function, args, kwargs)


def changed(function: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The operands that this call changes beside giving a result."""
    if name not in CHANGES:
        return []
    operands, switch, default = CHANGES[name]
    given = {**dict(zip(_parameters(function), args, strict=False)), **kwargs}
    if given.get(switch, default) in (None, False):
        return []
    return [value for operand in operands if isinstance(value := given.get(operand), Tensor)]


def asked_in_place(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call changes its first operand as it says `inplace=True`."""
    position = _position_of_inplace(function)
    return position is not None and bool(kwargs.get("inplace", args[position] if position < len(args) else False))


@cache
def _parameters(function: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else _PARAMETERS.get(function, ())


@cache
def _position_of_inplace(function: Any) -> int | None:
    names = _parameters(function)
    return names.index("inplace") if "inplace" in names else None


def sized(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the size of the result depends on values."""
    if name == "where":
        return len(args) + len(kwargs) == 1
    return name == "__getitem__" and has_mask(args[1])


def has_mask(index: Any) -> bool:
    parts = index if isinstance(index, (tuple, list)) else [index]
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)
