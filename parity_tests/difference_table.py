"""What the published code computes and we do not, and why: the one table of the deliberate differences.

`differences.py` makes docs/differences.md of it, and `golden.py` prints its reasons. The first 21 are the
oddities that the description of the golden files counts.
"""

from typing import NamedTuple


class Difference(NamedTuple):
    """One rule. reason: what a replay prints. why: with a proof where the published rule is a defect.

    shows: patterns of golden files. sizes: file -> largest change that a replay measures in it.
    """

    name: str
    reason: str
    published: str
    ours: str
    why: str
    shows: str = ""
    sizes: tuple[tuple[str, float], ...] = ()


ODDITIES = (
    Difference(
        "teach_aliasing",
        "levels after one that writes are handed the signal of older tokens",
        "When a level takes a full period out of its buffer, the popped signal and mask overwrite the "
        "current piece's; the levels after it store the piece's inputs with the signal of older tokens.",
        "A level gathers the gradient of its own tokens (`Gathered`, `memory/period_write.py`); the chunk's"
        " signal is one array that no level changes.",
        "Defect. Periods 2, 4, 8: at token 4 the second level pops tokens 1-4, and the third stores the "
        "inputs of tokens 3-4 beside the signal of tokens 1-2. The file holds a second result with this "
        "alone removed, and the two differ.",
        "attnblock_three_levels",
        (("attnblock_three_levels", 0.79),),
    ),
    Difference(
        "shared_over_batch",
        "CMS and TITAN memories are one for the whole batch",
        "The deltas of CMS and TITAN have no batch axis: every example writes them and reads the others' "
        "writes.",
        '`memory.scope="example"`: a fast state per example. `"batch"` is kept as an ablation.',
        "Defect as a rule for contexts: with B > 1 the output of an example depends on its neighbours in "
        "the batch, so no batch computes what its examples alone would.",
        "all streams with B > 1",
    ),
    Difference(
        "block_output_signal",
        "every CMS level is given the gradient at the block's output",
        "All levels of a chain descend along the signal at the block's output.",
        '`cms.delta_at="own_output"`: the cotangent at the level\'s own output. `"block_output"` is an '
        "ablation.",
        "For y = f_k(...f_1(x)) the gradient at level l's output is J_{l+1}^T ... J_k^T delta. It is "
        "delta only where all later levels have Jacobian 1, that is, for the last level.",
        "attnblock_*, hybrid_*, selfmod_block*, train_*, memorize_*",
    ),
    Difference(
        "no_bias_correction",
        "inner averages start at zero without correction, as here",
        "DeepMomentum starts its averages at zero and corrects neither. The first `preconditioned` step "
        "is lr (1 - beta) / sqrt(1 - beta2) = 3.2 lr per element, whatever the gradient's size.",
        "The same recurrences (`memory/rules.py`), bounded by `memory.write_clip`: no write changes"
        " a matrix by more than 2 % of its norm.",
        "Not a difference: the names mean what they mean in the published code. |g| cancels: with s = (1 "
        "- beta2) g^2, u = g / sqrt(s) = sign(g) / sqrt(1 - beta2) and v = (1 - beta) u.",
    ),
    Difference(
        "empty_periods",
        "a period without a teach signal still moves the weights by momentum",
        "A fully masked period has gradient 0, but v decays and moves the weights.",
        "Such a period leaves weights and optimizer state as they were, and clears what it gathered.",
        "Defect: v <- beta v and theta <- theta - lr beta v with nothing taught, so a text with ignored "
        "tokens in between ends elsewhere than without them. At the level of one write (`cms_update_*`) "
        "the gradient 0 is fed as published.",
        "attnblock_*, hybrid_*, selfmod_block*, memorize_*",
    ),
    Difference(
        "clock_per_call",
        "periods of TITAN count forward calls, reads included",
        "The clock ticks at every forward call. Training reads each piece twice, so TITAN's period in "
        "pieces is halved; reading a memory out changes when it is written next.",
        "Periods lie on the absolute token positions of a context (`memory/levels.py`); fast states are "
        "arguments and results, so a read cannot change one.",
        "Defect: two contexts with the same tokens are written at different tokens if one was read more "
        "often.",
        "level_clock, hybrid_*, memorize_*",
    ),
    Difference(
        "last_piece_dropped",
        "a last piece of one token is skipped together with its flush",
        "Pieces without a target are skipped, and the last one carries the finalize flag: with pieces of "
        "one token (the default where a level has period 1) the final flush never happens.",
        "The last chunk may have any length and is read and written as it is; `finish` flushes or drops "
        "what is unfinished, once, at the end of the stream.",
        "Defect: T = n N + 1 loses the flush that T = n N has.",
        "train_online_*",
    ),
    Difference(
        "overlap_mode",
        "pieces that overlap by a token, attention limited to the piece",
        "Without boundary targets, pieces after the first start one token early; without a cache their "
        "attention sees the piece alone.",
        "Every chunk is supervised on its next token too, and the attention cache always crosses chunks.",
        "Defect: the loss is that of a model with a context of one piece.",
        "train_online_*",
    ),
    Difference(
        "cache_needs_fast_state",
        "an attention cache is returned only beside a fast state",
        "Without fast state HOPE blocks return no cache although asked for one; the call then fails.",
        "Fast state and carry are independent: `HopeModel.read(params, {}, carry, ...)` reads the slow "
        "weights with a cache.",
        "Defect: the slow weights alone cannot be read as a stream.",
    ),
    Difference(
        "optimizer_state_lost",
        "the state of module-route inner optimizers is not saved",
        "On the module route inner optimizers live outside the state dict: a resumed run starts them at "
        "zero.",
        "Inner-optimizer state is part of the fast state, which checkpoints and saved memories hold.",
        "Defect: a resumed run differs from the uninterrupted one.",
        "attnblock_module_route",
    ),
    Difference(
        "surprise_after_clip",
        "global signals are measured after the clip, per-layer ones before it",
        "Surprise is the norm of the scaled signal: clipped in the global case, not in the per-layer one.",
        "Measured after `teach_scale`, before schedule and clip, in both (`learning/teach.py`).",
        "Defect: under a clip c <= threshold the global case never opens the gate, the per-layer case does.",
        "memorize_*",
    ),
    Difference(
        "discarded_writes",
        "without online chunks, writes into a fast state are thrown away",
        "Non-online training with a fast state builds a new one each step: all updates are lost.",
        '`two_pass` with `memory.lifetime="context"` does the same and says so in a warning; '
        '`"persistent"` keeps the memory over steps.',
        "Defect where it is silent.",
        "train_step_*",
    ),
    Difference(
        "stale_signal",
        "the write after the optimizer's step mixes new weights with the old signal",
        "The update pass runs forward with the stepped weights and the signal of the old ones.",
        "`two_pass` writes with the weights, inputs and signal of the read pass; the deltas are then "
        "added to the stepped weights.",
        "Defect: the signal is the gradient at the old outputs, not at those that are written.",
        "train_step_*",
    ),
    Difference(
        "half_retention",
        "retention starts near one half",
        "At the default initialisation alpha = sigmoid(M_alpha(x)) is near 0.5: a memory halves at every "
        "token.",
        "The `modern` style starts alpha near sigmoid(7) = 0.9991 (`alpha_init`); the `reference` style "
        "as published.",
        "A chunk of 64 tokens keeps 0.5^64 = 5e-20 of what was there, against 0.9991^64 = 0.94.",
    ),
    Difference(
        "ungated_self_mod",
        "self-modifying memories ignore gate, allowed levels and signal",
        "They write whenever a call has a teach signal, whatever its values, gate and allowed levels.",
        "They write whenever they read with a fast state: Eqs. 83-93 have no teach signal in them. Gate "
        "and signal belong to CMS and TITAN.",
        "Not a defect but for the condition: a signal that has no part in the write decides whether it "
        "happens.",
        "selfmod_block*, train_online_hope_selfmod",
    ),
    Difference(
        "restart_at_call",
        "chunks and convolution start again at every call",
        "Self-modifying memories restart chunk positions and convolution at each call and write the "
        "partial chunk at its end; CMS pieces start at the call, too.",
        "The grid lies on absolute positions. What is unfinished (streams of a chunk, convolution "
        "history, attention cache) is carried; calls never flush.",
        "Defect: f(x[:a]) then f(x[a:]) is not f(x): other tokens are written together, and the first w -"
        " 1 tokens after a see zeros. `smt_*` calls are replayed from position 0, partial chunk included.",
        "selfmod_block*, attnblock_*, hybrid_*, memorize_*",
    ),
    Difference(
        "no_residual",
        "no residual connection around self-modifying Titans",
        "In hope_selfmod x reaches the block's output only through W_q (or M_q).",
        "The `modern` style adds the memory's output to x; the `reference` style is as published "
        "(`model_hope_selfmod` matches).",
        "A matter of architecture: with L layers the token itself passes L query projections.",
    ),
    Difference(
        "titan_sign",
        "titan and hybrid models write towards opposite signs of the signal",
        "target = SelfModifier - G in the hybrid block, SelfModifier + G in the titan model.",
        "value + SelfModifier - delta in both (`memory/titan.py`).",
        "Defect. Without SelfModifier and with '+ value', mem - target = delta at the weights that read: "
        "descending 1/2 |mem - target|^2 is a step along -delta. With + delta the loss grows.",
        "train_* of titan models (`model_titan_only` is replayed at the published target)",
    ),
    Difference(
        "muon_by_name",
        "the inner optimizer `muon` is tanh of `preconditioned`, as here",
        "DeepMomentum's `muon` orthogonalises nothing.",
        "The same rule under the same name, described in docs/memory.md; the outer Muon is "
        "optax's with `kernels/newton_schulz`.",
        "Not a difference: `cms_update_muon` matches.",
    ),
    Difference(
        "checkpointed_clock",
        "recomputing a block in the backward pass ticks its clock again",
        "Gradient checkpointing runs block calls again, side effects included.",
        "Reads and writes are pure functions: `jax.checkpoint` computes the same again.",
        "Defect: saving memory changes the result.",
    ),
    Difference(
        "fixed_options",
        "reduction and hidden width of the CMS are not options of a model",
        "A model's CMS always sums, has hidden width 4 D and updates online, whatever its configuration "
        "says.",
        "`cms.hidden_multiplier` sets the width, `train.algorithm_mode` when memories write. Writes"
        " sum: a mean would make the rate depend on how many tokens carry a signal.",
        "",
    ),
)

RULES = (
    Difference(
        "doubled_gradient",
        "writes descend a squared distance: twice the gradient of <G, y>",
        "A write descends sum m |P - (stopgrad(P) - G)|^2, whose gradient is 2 G pulled back.",
        "The gradient of sum m <stopgrad(delta), y>; `cms_update_*` is fed 2 G.",
        "The factor belongs into the learning rate.",
        "attnblock_*, hybrid_*, selfmod_block*, train_*, memorize_*",
    ),
    Difference(
        "slow_layer_norm",
        "LayerNorm's scale and shift are written",
        "All parameters of a level or a TITAN memory are fast, LayerNorm's too.",
        "Matrices and biases are fast, LayerNorm's affine part is slow. `cms_update_*` and "
        "`model_titan_only` drive it through the same optimizers.",
        "It scales the whole output at once, where a write is to store something of its tokens.",
        "attnblock_*, hybrid_*, selfmod_block*, train_*, memorize_*",
    ),
    Difference(
        "rewritten_inputs",
        "inputs and gradients are taken anew at the weights of the moment",
        "Tokens are read in pieces of the smallest period, each with the writes of the pieces before it, "
        "inside one call; a slow level's prediction is computed again at the weights of its write.",
        "A chunk is read once with the memories of its start; every write takes its gradient at the "
        "weights that read its tokens, from the recorded inputs, and is read from the next chunk on.",
        "So that levels decouple and a chunk is one batched read. With one level and C = N the two are the "
        "same but for LayerNorm. Sizes are those of our CMS over the same inputs, twice the signal and the "
        "same rates, LayerNorm's part included; large ones belong to `preconditioned`, whose steps have the "
        "size 3.2 lr whatever the gradient.",
        "attnblock_*, hybrid_*, selfmod_block*, train_online_*, memorize_*",
        (
            ("attnblock_aligned", 0.0102),
            ("attnblock_three_levels", 1.92),
            ("attnblock_train_clip", 0.0160),
            ("hybrid_nothreshold", 0.0354),
            ("selfmod_block", 0.0529),
        ),
    ),
    Difference(
        "mean_loss",
        "signals are gradients of a mean over the batch",
        "The teach signal is the gradient of the mean loss over all supervised tokens of the batch.",
        "Of the sum of a chunk's losses: it depends neither on the batch nor on how a stream is cut. "
        "`teach.normalize=batch_mean` is an ablation; `teach_*` and `train_step_*` are divided by the "
        "count.",
        "At the pilot's size the mean's norms are near 1e-4: a threshold of 0.02 never opens, a clip of 5"
        " never binds.",
        "train_*, memorize_*",
    ),
    Difference(
        "head_signal",
        "in training the global signal is not pulled back through the final norm",
        "Global signals of training are gradients at the input of the head, with the new head's weights.",
        "Pulled back through the final norm, at the weights that read (the last block's own cotangent).",
        "It is applied at the blocks' outputs, before the norm.",
        "train_* with a global signal",
    ),
    Difference(
        "context_projection",
        "`nl_l2_precond` projects every tensor whose last axis has D entries",
        "The projection takes all tensors of that shape, biases and norms too, against the mean raw input.",
        "The input axis of W_up, against the period's mean of LN(x), which that matrix multiplies; "
        "skipped for periods of one token.",
        "For C = 1 the gradient of W_up is x g^T: projecting out x erases the write. "
        "`cms_update_nl_l2_precond` matches with the published axes and context.",
        "streams with nl_l2_precond",
    ),
    Difference(
        "titan_target",
        "TITAN's target lacks the memory's own value, its loss is a mean",
        "target = SelfModifier -+ G; loss averaged over active tokens; one update a call, if the clock "
        "says so.",
        "target = value + SelfModifier - delta, summed over the period.",
        "mem ends in a LayerNorm, |mem| is about sqrt(D), the signal is thousands of times smaller: "
        "without the value a write mostly pulls the output towards zero. `model_titan_only` is replayed "
        "at the published target.",
        "hybrid_*, memorize_hope_hybrid*, train_* of hybrid and titan models",
    ),
    Difference(
        "module_writes",
        "writes go into the module's weights",
        "Without fast state, updates overwrite the slow weights; each call keeps its own buffers, so "
        "partial periods are lost.",
        "Slow weights change by the outer optimizer alone; every write is a delta in a fast state.",
        "The outer gradient is that of weights which the update pass then changes behind the optimizer's "
        "back.",
        "*_module_route, train_step_* of models with memories",
    ),
    Difference(
        "differentiable_route",
        "differentiable writes leave the inner optimizer out",
        "Where the outer gradient flows through writes they are plain -lr g, without momentum.",
        "`through_writes` differentiates the writes that are made, inner optimizer included.",
        "The outer gradient should be that of the memory that is used.",
        "attnblock_differentiable, train_online_*_through_write",
    ),
    Difference(
        "batch_surprise",
        "one surprise value decides for the whole call",
        "The mean over all tokens of the batch, or a value from outside, opens or closes the gate of a call.",
        "Per example, layer and period: the mean over its tokens with a signal (`memory/period_write.py`).",
        "A gate per call depends on where calls are cut and on the other examples.",
        "attnblock_gated, hybrid_threshold, memorize_* with a threshold",
    ),
    Difference(
        "dropped_periods",
        "every finalized call flushes or drops unfinished periods",
        "A finalized call ends with a flush (or drop) of all buffers; memorizing finalizes at every step.",
        "Calls never flush; `finish` does, once, at the stream's end.",
        "The state after a document would depend on how it was cut into calls.",
        "attnblock_stream_*, memorize_*",
    ),
    Difference(
        "memorize_rules",
        "memorizing reads a text several times and writes it whole",
        "A step reads the text, takes the global signal, and reads it again to write; in chunks the whole"
        " prefix is read again for every chunk, which is quadratic, and `steps` is ignored.",
        "A stream writes every chunk once, when its last target is known, with its own carry.",
        "The memory is to hold what one reading of the text leaves.",
        "memorize_*",
    ),
    Difference(
        "online_training",
        "pieces weigh the same whatever they supervise; self-modifying memories do not write in the loss "
        "pass",
        "The gradients of pieces' mean losses are added; each piece is read a second time to write; "
        "self-modifying memories only read while the loss is taken.",
        "Every supervised token weighs the same; signal and outer gradient come from one backward pass; "
        "self-modifying memories write inside the loss pass.",
        "A piece of one target would weigh as much as one of N, and M_k, M_v, M_eta, M_alpha would "
        "receive no outer gradient.",
        "train_online_*",
    ),
    Difference(
        "self_mod_lr",
        "`self_mod_lr` reaches only levels that name no rate",
        "It is the inner rate of levels without an optimizer of their own and eta's scale in "
        "hope_selfmod: the published ablation that sets it to 0 changes nothing where levels name theirs.",
        "The same two meanings. What the ablation is about, the SelfModifier, is switched by "
        "`titan.self_modifier.enabled`.",
        "Where all levels name a rate, the published `selfmod_off` is its base run under another name.",
    ),
    Difference(
        "muon_bias_correction",
        "optax corrects Muon's Nesterov momentum for its bias, torch does not",
        "torch.optim.Muon orthogonalises (1 - mu) g + mu buf, buf <- mu buf + (1 - mu) g, in bfloat16.",
        "`optax.contrib.scale_by_muon`, in the parameters' precision. The rest of the recurrence is replayed "
        "with optax's parts and matches.",
        "optax divides buf by 1 - mu^(t+1) and g by 1 - mu^t before it adds them. At t = 1 both sums are "
        "parallel to g; later the weight of the newest gradient against buf is (1 - mu^(t+1)) / (1 - mu^t) "
        "times torch's, which tends to 1.",
        "optim_muon_*, train_* with Muon",
        (("optim_muon_default", 4.9e-3), ("optim_muon_match_rms", 1.9e-3)),
    ),
    Difference(
        "unknown_optimizer",
        "an unknown inner optimizer is plain momentum without a word",
        "Any unknown variant name is accepted and means momentum.",
        "Unknown names are refused, with the known ones listed. A replay drives momentum.",
        "Defect: a misspelt name trains something else.",
        "cms_update_* with such a name",
    ),
    Difference(
        "not_offered",
        "an option of single modules that no published configuration sets",
        "TITAN memories of any depth; whatever activation a module takes besides GELU, ReLU and SiLU.",
        "TITAN memories of two layers, and these three.",
        "Options exist where they are useful ablations.",
    ),
    Difference(
        "unread_weights",
        "weights that nothing reads are not created",
        "M_q exists without `adaptive_q`, M_alpha without `use_alpha`; the optimizer decays them.",
        "Parameters that are never read do not exist. In `smt_*` their recorded states are the file's own"
        " first weights, and that is what they are compared with.",
        "",
    ),
    Difference(
        "name_grouping",
        "Muon's and M3's matrices are chosen by the names of tensors",
        "Everything with two or more axes whose name has neither 'norm' nor 'embed', the depthwise "
        "convolution included, which torch's Muon then refuses.",
        "The matrices `w_*` of the blocks, and the embedding under `muon`; filters, norms, biases and "
        "numbers go to AdamW (`optim/outer.py`).",
        "A depthwise filter is no linear map between directions.",
    ),
    Difference(
        "bounds",
        "writes are not bounded",
        "A write may be of any size.",
        "`memory.write_clip` and `memory.delta_clip` bound one write and all writes of a matrix; 0 "
        "switches them off, as replays do.",
        "",
    ),
)

TABLE = ODDITIES + RULES
BY_NAME = {difference.name: difference for difference in TABLE}
