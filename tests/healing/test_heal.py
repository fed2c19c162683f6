"""Healing: a teacher that is the dense model to the last bit, a state that never gets worse, adapters for peft."""

import json
import re
from dataclasses import replace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel

import lit_prune
from lit_prune.__main__ import main
from lit_prune.commands.lessons import Lessons
from lit_prune.errors import LitPruneError, MeasureError, ModelError
from lit_prune.export import save
from lit_prune.healing import (
    DenseTeacher,
    Distillation,
    HealingSettings,
    LoraHealing,
    Manners,
    OtherTeacher,
    attach_lora,
    distillation_loss,
    heal,
    merge,
    race,
    repetition,
    require_same_tokens,
    save_adapter,
    written_requests,
    written_windows,
)
from lit_prune.healing.distillation import taught_loss
from lit_prune.healing.rollouts import (
    PROMPT,
    Examination,
    Repairs,
    beginnings,
    continued,
    continued_apart,
    loop_begins,
)
from lit_prune.plan import PrunePlan, SublayerId
from lit_prune.pruning import prune
from lit_prune.surgery import compact, remove
from tests import naive
from tests.tiny import character_tokenizer, tiny_model

TOKENS = torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(1))
BATCH = {"input_ids": TOKENS, "labels": TOKENS}
QUIET = {"progress": False, "accelerator": "cpu", "batch_size": 4}
GONE = [SublayerId(1, "attention"), SublayerId(2, "attention"), SublayerId(2, "mlp")]


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


@torch.no_grad()
def greedy(model, start, length):
    """The naive way, without a cache."""
    rows = start
    while rows.shape[1] < length:
        rows = torch.cat([rows, model(input_ids=rows, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return rows


def pruned_model(architecture="llama", *, closed=False):
    model = tiny_model(architecture)
    remove(model, GONE)
    if closed:
        compact(model)
    return model


@pytest.mark.parametrize("compensate", ["none", "scale", "linear", "bias"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_teacher_is_the_dense_model_and_the_student_the_pruned_one(architecture, compensate):
    dense = logits(tiny_model(architecture))
    pruned = tiny_model(architecture)
    batches = [{"input_ids": naive.own_text(pruned, 8, 40)}]
    prune(pruned, batches, amount=0.3, compensate=compensate, progress=False)
    teacher = DenseTeacher.of_pruned(tiny_model(architecture), pruned)
    student = teacher.student
    assert torch.equal(logits(student), logits(pruned))
    attach_lora(student, LoraHealing(rank=2))
    with torch.no_grad():
        for name, each in student.named_parameters():
            if "lora_B" in name:
                each.normal_()
    adapted = logits(student)
    assert not torch.allclose(adapted, logits(pruned))
    assert torch.equal(teacher.outputs(BATCH).logits, dense)
    with teacher.teaching() as teaching:
        assert torch.equal(continued(teaching, TOKENS[:, :6], 16), greedy(tiny_model(architecture), TOKENS[:, :6], 16))
    assert torch.equal(logits(student), adapted), "and the student is as it was"
    assert torch.equal(continued(student, TOKENS[:, :6], 16), greedy(student, TOKENS[:, :6], 16))


def test_blocks_that_left_the_list_are_taught_too():
    pruned = pruned_model(closed=True)
    assert len(pruned.model.layers) == 3
    teacher = DenseTeacher.of_pruned(tiny_model("llama"), pruned)
    assert torch.allclose(logits(teacher.student), logits(pruned), atol=1e-6)
    assert torch.equal(teacher.outputs(BATCH).logits, logits(tiny_model("llama")))


def test_no_second_copy_of_the_weights_is_held():
    pruned = pruned_model()
    dense = tiny_model("llama")
    gone = sum(each.numel() for each in dense.parameters()) - sum(each.numel() for each in pruned.parameters())
    assert DenseTeacher.of_pruned(dense, pruned).num_extra_parameters == gone


def test_a_teacher_of_another_model_is_refused():
    with pytest.raises(ModelError, match="the dense model that was pruned"):
        DenseTeacher.of_pruned(tiny_model("gpt2"), pruned_model())
    with pytest.raises(ModelError, match="3 sublayers removed"):
        DenseTeacher.of_pruned(pruned_model(), pruned_model())


def test_another_model_teaches_by_the_tokens_that_both_have():
    pruned, larger = pruned_model(), tiny_model("llama", vocab_size=140, num_hidden_layers=6)
    names = {f"t{number}": number for number in range(128)}
    require_same_tokens({**names, "spare": 139}, names)
    teacher = OtherTeacher(larger, pruned)
    taught, out = teacher.outputs(BATCH), pruned(input_ids=TOKENS, use_cache=False)
    assert taught.logits.shape[-1] == 140
    found = taught_loss(Distillation(), taught, out, TOKENS, text=None, student=pruned)
    shared = taught.logits[:, :-1, :128].log_softmax(-1), out.logits[:, :-1].log_softmax(-1)
    wanted = (shared[0].exp() * (shared[0] - shared[1])).sum(-1).mean()
    assert torch.isclose(found, wanted, atol=1e-5)
    with pytest.raises(LitPruneError, match="hidden states are not the student's"):
        teacher.outputs(BATCH, hidden_states=True)
    with pytest.raises(
        ModelError, match="2 of 128 are others: the id 3 is 't4' to the teacher and 't3' to the student"
    ):
        require_same_tokens({**names, "t3": 4, "t4": 3}, names)


def test_healing_towards_another_model(pruned_folder, text, tmp_path, tokenizer, capsys):
    other = tmp_path / "other"
    tiny_model("llama", num_hidden_layers=6, vocab_size=150).save_pretrained(other)
    tokenizer.save_pretrained(other)
    command = ["heal", str(pruned_folder), "--output", str(tmp_path / "healed"), *options(f"{text}, self")]
    assert main([*command, "--teacher", str(other), "--dense", str(other)]) == 2
    assert "takes the dense model's place" in capsys.readouterr().err
    assert main([*command, "--teacher", str(other), "--training.patience", "9"]) == 0
    assert PrunePlan.load(tmp_path / "healed").healing["teacher"] == str(other)


def test_distillation_is_the_divergence_of_the_distributions():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 5, 7, generator=generator).double().unbind()
    p, q = (torch.softmax(each / 2, -1) for each in (teacher, student))
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    assert distillation_loss(teacher, student, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("width", "temperature", "share"), [(7, 2.0, 0.0), (7, 1.0, 0.3), (5, 2.0, 0.3), (9, 1.0, 1.0)]
)
def test_gradients_of_the_divergence_are_those_of_all_positions_at_once(monkeypatch, width, temperature, share):
    monkeypatch.setattr("lit_prune.measure.losses.ELEMENTS_AT_A_TIME", (5 * 7, 5 * 7))
    draw = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(152, width, generator=draw), torch.randn(152, 7, generator=draw)
    targets = torch.randint(7, (152,), generator=draw)
    targets[[3, 151]] = -100
    found, expected = (student.clone().requires_grad_() for _ in range(2))
    loss = distillation_loss(teacher, found, temperature, targets=targets, cross_entropy=share)
    (3 * loss).backward()
    log_p, log_q = (each[targets >= 0, : min(width, 7)] / temperature for each in (teacher, expected))
    divergence = F.kl_div(log_q.log_softmax(-1), log_p.log_softmax(-1), log_target=True, reduction="batchmean")
    wanted = (1 - share) * temperature**2 * divergence + share * F.cross_entropy(expected, targets)
    (3 * wanted).backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found.grad, expected.grad)


def test_gradients_in_half_precision_are_there_for_a_scaler():
    teacher, student = (8 * torch.randn(2, 64, 500, generator=torch.Generator().manual_seed(0))).half().unbind()
    found, expected = (student.detach().to(dtype, copy=True).requires_grad_() for dtype in (torch.half, torch.float))
    for each in (found, expected):
        (2**14 * distillation_loss(teacher, each)).backward()
    seen = expected.grad.abs() > 2e-3  # 1e-7 without the scale, which half precision has in steps of 6e-8
    torch.testing.assert_close(found.grad[seen].float(), expected.grad[seen], rtol=2e-2, atol=0)


@pytest.mark.parametrize("hidden", [0.0, 0.5])
@pytest.mark.parametrize("taught", [True, False])
def test_healing_helps_and_merges_into_the_same_logits(taught, hidden):
    text = naive.own_text(tiny_model("llama"), 48, 40)
    teacher = DenseTeacher.of_pruned(tiny_model("llama"), pruned_model())
    model = teacher.student
    before = naive.mean_loss(model, [{"input_ids": text[32:]}])
    report = heal(
        model,
        text[:32],
        text[32:],
        lora=LoraHealing(rank=4),
        settings=HealingSettings(tokens=40 * 160, learning_rate=1e-2, hidden=hidden),
        teacher=teacher if taught else None,
        **QUIET,
    )
    after = naive.mean_loss(model, [{"input_ids": text[32:]}])
    assert report.helped
    assert after < before - 0.05
    assert (report.ppl_before, report.ppl_after) == pytest.approx(
        (torch.tensor(before).exp().item(), torch.tensor(after).exp().item()), rel=1e-4
    )
    assert (report.steps, report.tokens) == (40, 40 * 160)
    adapted = logits(model)
    merge(model)
    assert torch.allclose(logits(model), adapted, atol=1e-4)


def test_a_healing_that_does_not_help_leaves_the_model_as_it_was():
    text = naive.own_text(tiny_model("llama"), 24, 40)
    model = tiny_model("llama")
    before = logits(model)
    # Noise to learn from, at a rate that ruins: the text of the dense model itself can only get worse.
    noise = torch.randint(3, 128, (16, 40), generator=torch.Generator().manual_seed(3))
    settings = HealingSettings(tokens=1600, learning_rate=0.5, lr_schedule="constant", also=("norms",), last_blocks=1)
    report = heal(model, noise, text, settings=settings, **QUIET)
    assert not report.helped
    assert report.ppl_after == report.ppl_before
    assert torch.equal(logits(model), before)


def test_a_model_with_nan_in_what_one_batch_reads_is_refused():
    text = naive.own_text(tiny_model("llama"), 24, 40)
    model = pruned_model()
    rare = next(token for token in range(3, 128) if (text[16:] == token).any(1).sum() == 1)
    with torch.no_grad():
        model.get_input_embeddings().weight[rare, 0] = torch.nan
    with pytest.raises(MeasureError, match="NaN or infinite before the first step"):
        heal(model, text[:16], text[16:], settings=HealingSettings(tokens=160), **QUIET)


def test_heads_and_tails_are_trained_where_asked_and_the_teacher_stays_dense():
    text = naive.own_text(tiny_model("llama"), 24, 40)
    teacher = DenseTeacher.of_pruned(tiny_model("llama"), pruned_model())
    model = teacher.student
    before = {name: each.clone() for name, each in model.named_parameters()}
    settings = HealingSettings(tokens=1600, learning_rate=1e-2, also=("norms", "head"), last_blocks=1)
    assert heal(model, text[:16], text[16:], settings=settings, teacher=teacher, **QUIET).helped
    assert torch.equal(teacher.outputs(BATCH).logits, logits(tiny_model("llama")))
    merge(model)
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert {"model.norm.weight", "lm_head.weight", "model.layers.3.input_layernorm.weight"} <= changed
    assert "model.layers.0.self_attn.q_proj.weight" in changed, "by its adapter"
    assert ("model.embed_tokens.weight" in changed) == model.config.tie_word_embeddings


def test_patience_stops_early():
    noise = torch.randint(3, 128, (16, 40), generator=torch.Generator().manual_seed(3))
    text = naive.own_text(tiny_model("llama"), 8, 40)
    settings = HealingSettings(tokens=40 * 160, learning_rate=0.5, lr_schedule="constant", patience=2)
    assert heal(tiny_model("llama"), noise, text, settings=settings, **QUIET).steps < 40


class Dies(L.Callback):
    """Ends the training before a step, as the end of the process or Ctrl-C would."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise self.error


def healed_model(*callbacks, state=None, seed=0):
    torch.manual_seed(seed)  # what a process finds is not what the training goes by
    text = naive.own_text(tiny_model("llama"), 18, 24)
    teacher = DenseTeacher.of_pruned(tiny_model("llama"), pruned_model())
    learned = {"also": ("norms",), "cross_entropy": 0.2, "repair": 0.5, "examined": 3}
    settings = HealingSettings(tokens=13 * 96, learning_rate=1e-2, validations=4, **learned)
    lora = LoraHealing(rank=2, dropout=0.2)
    options = {"lora": lora, "settings": settings, "teacher": teacher, "state": state, "callbacks": callbacks}
    report = heal(teacher.student, text[:14], text[14:], **options, **QUIET)
    return report, {name: each.detach().clone() for name, each in teacher.student.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*mid-epoch.*")
@pytest.mark.parametrize("steps", [(2,), (3,), (5, 11), (12,)], ids=str)
def test_a_training_that_was_killed_goes_on_with_the_same_result_to_the_last_bit(tmp_path, steps):
    (report, weights), state = healed_model(seed=1), tmp_path / "healing" / "state.ckpt"
    for step in steps:
        with pytest.raises(RuntimeError, match="killed"):
            healed_model(Dies(step, RuntimeError("killed")), state=state, seed=step)
        assert state.exists() == (step >= 3), "behind every validation, one in three steps"
    again, found = healed_model(state=state, seed=9)
    assert replace(again, seconds=0) == replace(report, seconds=0)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert again.step > 0
    assert {*again.manners} == {"before", "after", "teacher"}
    done, _ = healed_model(state=state)
    assert replace(done, seconds=0) == replace(report, seconds=0), "what is done is not done again"


def in_circles(model):
    """The same model, whose next token follows from the last one alone, so that it soon repeats itself."""
    for layer in model.model.layers:
        for weight in layer.self_attn.parameters():
            weight.data.zero_()
    return model


@pytest.mark.parametrize("more", [1, -1], ids=["ends-more", "ends-fewer"])
def test_a_pair_is_what_teacher_and_model_write_where_the_model_repeats_itself_or_ends_more_than_its_teacher(more):
    text = torch.randint(3, 128, (12, 24), generator=torch.Generator().manual_seed(5))
    prompts = [row[: 12 + place] for place, row in enumerate(text)]
    pruned, dense = in_circles(pruned_model()), tiny_model("llama")
    # A text ends with what both write, and one of them in more texts.
    texts = [[greedy(model, row[None], len(row) + 60)[0, len(row) :] for row in prompts] for model in (pruned, dense)]
    counts = [sum(torch.bincount(row, minlength=128).clamp(max=1) for row in rows) for rows in texts]
    ends = {2, int((counts[0] * (more * (counts[0] - counts[1]) > 0)).argmax())}
    teacher = DenseTeacher.of_pruned(tiny_model("llama"), pruned)
    teacher.student.generation_config.eos_token_id = [*ends]
    repairs = Repairs(prompts, teacher, length=60)
    repairs.renew(teacher.student, 4, seed=3)  # four prompts a step, of which there are not as many

    def parts(row):
        """What was written, where it ends, and the place at which it begins to repeat itself before."""
        row = row.tolist()
        stop = next((place for place, token in enumerate(row) if token in ends), 60)
        begin = loop_begins(torch.tensor(row))
        return row, stop, begin if begin < stop else None

    def pair_loss(start, worse):
        better = greedy(dense, torch.tensor([start]), len(start) + len(worse))[0, len(start) :].tolist()
        losses = []
        with torch.no_grad():
            for behind in (better, worse):
                row = torch.tensor([*start, *behind])
                logits = pruned(input_ids=row[None]).logits[0, len(start) - 1 : -1]
                losses.append(float(F.cross_entropy(logits, row[len(start) :])))
        return [] if better == worse else [max(0.0, 1 + losses[0] - losses[1])]

    drawn = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    rows = [[parts(of_model[number]) for of_model in texts] for number in drawn]
    excess = sum((own[1] < 60) - (taught[1] < 60) for own, taught in rows)
    assert excess * more > 0
    expected, kinds, left = [[] for _ in range(4)], [], max(0, excess)
    for place, (number, (own, taught)) in enumerate(zip(drawn, rows, strict=True)):
        if own[2] is not None and taught[2] is None:
            kinds.append("loop")
            start = [*prompts[number].tolist(), *own[0][: own[2]]]
            expected[place % 4] += pair_loss(start, own[0][own[2] :][:24])
        if own[2] is None and own[1] < taught[1] and left:
            left, kinds = left - 1, [*kinds, "end"]
            start = [*prompts[number].tolist(), *own[0][: own[1]]]
            expected[place % 4] += pair_loss(start, own[0][own[1] :][:1])
    assert {*kinds} == ({"loop", "end"} if more > 0 else {"loop"})
    assert max(map(len, expected)) > 1
    for step, losses in enumerate(expected):
        found = repairs.loss(teacher.student, step)
        assert (found is not None) == bool(losses)
        assert found is None or float(found.detach()) == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert repairs.loss(teacher.student, 4) is None
    calm = DenseTeacher.of_pruned(tiny_model("llama"), pruned_model())  # neither repeats itself
    both = DenseTeacher(in_circles(tiny_model("llama")))
    for other, prompt in ((calm, torch.arange(3, 51)), (both, prompts[0])):
        repairs = Repairs([prompt], other, length=48)
        repairs.renew(other.student, 1, seed=0)
        assert repairs.loss(other.student, 0) is None


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_beginnings_of_several_lengths_go_on_as_if_alone(architecture):
    model = tiny_model(architecture)
    starts = [TOKENS[0, :9], TOKENS[1, :5], TOKENS[0, :12]]
    # A head that is frozen, as beside adapters, is copied on a CPU for every row of a slice.
    is_whole = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, out: is_whole.append(args[0].is_contiguous()))
    written = continued_apart(model, starts, 7)
    hook.remove()
    assert is_whole == [True] * 7
    for start, found in zip(starts, written, strict=True):
        assert torch.equal(found, greedy(model, start[None], len(start) + 7)[0, len(start) :])


@pytest.mark.parametrize(
    ("tokens", "begin"),
    [
        ([*range(30)], 30),
        ([5] * 30, 1),
        ([*range(20), *range(20)], 20),
        ([*range(11), 50, *range(11), 51, *range(11)], 35),
        ([*range(97), *range(97)], 194),
    ],
)
def test_loops_begin_where_the_repetition_does(tokens, begin):
    assert loop_begins(torch.tensor(tokens)) == begin


def test_manners_are_those_of_what_is_written(tokenizer):
    dense, pruned = tiny_model("llama"), pruned_model()
    text = torch.randint(3, 128, (5, 100), generator=torch.Generator().manual_seed(6))
    teacher = DenseTeacher.of_pruned(dense, pruned)
    wanted = {}
    for name, model in (("dense", tiny_model("llama")), ("pruned", pruned)):
        end = model.generation_config.eos_token_id
        rows = [row[PROMPT:].tolist() for row in greedy(model, text[:, :PROMPT], 100)]
        kept = [row[: row.index(end)] if end in row else row for row in rows]
        wanted[name] = sum(map(repetition, kept)) / 5, sum(end in row for row in rows) / 5
    prompts = beginnings(text)
    examination = Examination(prompts, teacher, length=100 - PROMPT)
    found = examination.of(teacher.student)
    assert (examination.teachers.repetition, examination.teachers.ended) == pytest.approx(wanted["dense"])
    assert (found.repetition, found.ended) == pytest.approx(wanted["pruned"])
    written = greedy(tiny_model("llama"), text[:, :PROMPT], 100)
    with torch.no_grad():
        likeliest = pruned(input_ids=written, use_cache=False).logits[:, PROMPT - 1 : -1].argmax(-1)
    assert found.agreement == pytest.approx(float((likeliest == written[:, PROMPT:]).float().mean()))
    assert Examination(prompts).of(pruned).agreement is None
    # Of several lengths, each as if it were alone.
    mixed = [prompts[0], prompts[1][:20], prompts[2][:31]]
    alone = [Examination([each], teacher, length=30).of(teacher.student) for each in mixed]
    together = Examination(mixed, teacher, length=30).of(teacher.student)
    for figure in ("repetition", "ended", "agreement"):
        assert getattr(together, figure) == pytest.approx(sum(getattr(each, figure) for each in alone) / 3)


def test_of_two_states_that_one_is_kept_which_repeats_itself_less(monkeypatch):
    plain, _ = healed_model()
    assert plain.step > 3
    seen = iter([0.3, 0.3, 0.9, 0.9, 0.9, 0.9])
    monkeypatch.setattr(Examination, "of", lambda self, model: Manners(next(seen), 0.0, 0.5))
    report, _ = healed_model()
    assert report.step == 3
    assert report.ppl_after > plain.ppl_after, "perplexity went on falling"
    assert (report.manners["before"]["repetition"], report.manners["after"]["repetition"]) == (0.3, 0.3)


def test_ctrl_c_leaves_the_best_state_and_other_windows_do_not_go_on_from_it(tmp_path):
    state = tmp_path / "state.ckpt"
    report, _ = healed_model(Dies(8, KeyboardInterrupt()), state=state)
    assert (report.stopped, report.steps) == (True, 8)
    assert 0 < report.step <= 6
    assert report.ppl_after < report.ppl_before
    text = naive.own_text(tiny_model("llama"), 18, 24)
    with pytest.raises(LitPruneError, match="of a healing with other settings, lora, taught, windows: remove it"):
        heal(pruned_model(), text[1:14], text[14:], state=state, **QUIET)


def test_prompts_are_examined_and_those_behind_them_repaired(monkeypatch):
    prompts = torch.cat([TOKENS[:, :9], torch.full((len(TOKENS), 2), -1)], dim=1).roll(2, dims=1)
    seen = {}
    for kind in (Examination, Repairs):
        begin = kind.__init__

        def watched(self, prompts, teacher, *, length, kind=kind, begin=begin):
            seen[kind] = [each.tolist() for each in prompts], length
            begin(self, prompts, teacher, length=length)

        monkeypatch.setattr(kind, "__init__", watched)
    pruned = pruned_model()
    teacher = DenseTeacher.of_pruned(tiny_model("llama"), pruned)
    text = naive.own_text(tiny_model("llama"), 6, 24)
    own = {"settings": HealingSettings(tokens=24, validations=1, examined=1, repair=0.1), "teacher": teacher, **QUIET}
    with pytest.raises(LitPruneError, match="more than 1 prompts are wanted, since so many are examined; found 1"):
        heal(teacher.student, text[:4], text[4:], prompts=prompts[:1], **own)
    heal(teacher.student, text[:4], text[4:], prompts=prompts, **own)
    wanted = [row.tolist() for row in TOKENS[:, :9]]
    assert seen == {Examination: (wanted[:1], 128), Repairs: (wanted[1:], 160)}


def test_gradient_checkpointing_trains_the_same():
    text = naive.own_text(tiny_model("llama"), 24, 40)
    found = []
    for checkpointing in (False, True):
        model = pruned_model()
        settings = HealingSettings(tokens=800, learning_rate=1e-2, gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        heal(model, text[:16], text[16:], settings=settings, **QUIET)
        assert not any(getattr(each, "gradient_checkpointing", False) for each in model.modules())
        found.append(logits(model))
    assert torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("options", [{"tokens": 0}, {"also": ("nroms",)}, {"learning_rate": 0}, {"last_blocks": -1}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(LitPruneError, match="healing"):
        HealingSettings(**options)


def test_a_model_writes_text_of_its_own():
    model = tiny_model("llama")
    first, again = (written_windows(model, 5, 12, batch_size=2, seed=3) for _ in range(2))
    assert first.shape == (5, 12)
    assert torch.equal(first, again)
    assert (first[:, 0] == model.config.bos_token_id).all()
    # What it is likely to say, and not noise.
    noise = torch.randint(3, 128, (5, 12), generator=torch.Generator().manual_seed(0))
    assert naive.mean_loss(model, [{"input_ids": first}]) < naive.mean_loss(model, [{"input_ids": noise}])


def test_written_text_goes_on_behind_its_end():
    model = tiny_model("llama")
    # A model that says nothing but its end of text and one other token.
    end, other = model.config.eos_token_id, 7
    model.get_output_embeddings().weight.data[[end, other]] *= 0
    model.get_output_embeddings().weight.data[[end, other]] += model.model.norm.weight.new_tensor([[40.0], [40.0]])
    model.model.norm.weight.data.zero_()
    model.model.norm.register_forward_hook(lambda _, inputs, found: torch.ones_like(found))
    written = written_windows(model, 4, 12, seed=0)[:, 1:]
    assert written.shape == (4, 11)
    assert set(written.unique().tolist()) == {end, other}


@pytest.mark.parametrize(
    ("template", "opening"),
    [("be kind.{{ messages[0].content }}!", "be kind."), ("{{ messages[0].content | upper }}", ""), (None, "")],
)
def test_every_second_window_of_a_model_that_chats_begins_as_a_dialogue(template, opening):
    model, tokenizer = tiny_model("llama", vocab_size=len(character_tokenizer()) + 300), character_tokenizer()
    tokenizer.chat_template = template
    written = written_windows(model, 6, 24, tokenizer=tokenizer)
    assert written.shape == (6, 24)
    assert written.max() < len(tokenizer), "what is padding is never written"
    begin = tokenizer(opening, add_special_tokens=False)["input_ids"] or [-1]
    assert sum(row[: len(begin)] == begin for row in written.tolist()) == (3 if opening else 0)


def test_requests_are_what_a_model_says_as_the_user_up_to_where_it_answers():
    tokenizer = character_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer) + 300)
    assert written_requests(model, 4, tokenizer=tokenizer) is None, "it does not chat"
    tokenizer.chat_template = "User: {{ messages[0].content }};{% if add_generation_prompt %} Bot:{% endif %}"
    opening, behind = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("User: ", "; Bot:"))
    found = written_requests(model, 64, tokenizer=tokenizer, most=48, seed=1)
    assert found.shape[0] > 4
    assert torch.equal(found, written_requests(model, 64, tokenizer=tokenizer, most=48, seed=1, batch_size=64))
    for row in found:
        request = row[row >= 0].tolist()
        assert row.tolist() == [-1] * (len(row) - len(request)) + request
        said = request[len(opening) : -len(behind)]
        assert request == [*opening, *said, *behind]
        assert 0 < len(said) < 48
        assert behind[0] not in said
        assert max(said) < len(tokenizer)


def test_lessons_hold_requests_where_the_model_chats_and_ends_them(monkeypatch, capsys):
    tokenizer = character_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    lessons = Lessons(window=16, val_windows=2)

    def drawn(num_requests=8):
        return lessons.windows(["self"], tokenizer, 64, lambda: model, num_requests)

    assert {name: rows.shape for name, rows in drawn().items()} == {"train": (4, 16), "validation": (2, 16)}
    tokenizer.chat_template = "{{ messages[0].content }};{% if add_generation_prompt %} Bot:{% endif %}"
    assert {*drawn(0)} == {"train", "validation"}
    monkeypatch.setattr("lit_prune.healing.written_requests", lambda *_, **__: torch.ones(4, 3))
    assert {*drawn()} == {"train", "validation", "requests"}
    assert "too few" not in capsys.readouterr().out
    monkeypatch.setattr("lit_prune.healing.written_requests", lambda *_, **__: torch.ones(3, 3))
    assert {*drawn()} == {"train", "validation"}
    assert "too few of them end: beginnings of the texts are gone on with instead" in capsys.readouterr().out


def test_requests_of_the_user_s_take_the_place_of_written_ones(tmp_path, monkeypatch):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }};{% if add_generation_prompt %} Bot:{% endif %}"
    monkeypatch.setattr("lit_prune.healing.written_requests", lambda *_, **__: pytest.fail("there are some"))
    said = ["Hi", "What is this", "Why", "Who goes there", "When"]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"turns": [each, "And?"]}) + "\n" for each in said))
    lessons = Lessons(window=16, val_windows=2, requests=str(tmp_path / "own.jsonl"))
    model = tiny_model("llama", vocab_size=len(tokenizer))
    rows = lessons.windows(["self"], tokenizer, 64, lambda: model, 8)["requests"]
    first = [tokenizer.decode(row[row >= 0]) for row in rows]
    assert {*first} == {f"{each}; Bot:" for each in said}
    assert all(row.tolist() == sorted(row.tolist(), key=lambda token: token >= 0) for row in rows), "-1 is in front"
    again = replace(lessons, seed=1).windows(["self"], tokenizer, 64, lambda: model, 8)["requests"]
    assert [tokenizer.decode(row[row >= 0]) for row in again] != first, "the order is drawn"


@pytest.fixture
def pruned_folder(model_folder, text, tmp_path):
    options = ["--data", str(text), "--window", "16", "--num_windows", "4", "--device", "cpu"]
    out = tmp_path / "pruned"
    assert main(["prune", str(model_folder), "--output", str(out), "--amount", "0.3", *options]) == 0
    return out


def options(text):
    small = ["--training.tokens", "640", "--training.validations", "2", "--lora.rank", "2", "--val_windows", "4"]
    small += ["--training.learning_rate", "1e-2"]
    return ["--data", f"[{text}]", "--window", "16", "--device", "cpu", *small]


def test_heal_writes_a_model_of_the_same_structure(pruned_folder, text, tmp_path, capsys):
    # The dense model, with random weights, is no better on this text: most is learned from the text itself.
    mixed = ["--training.cross_entropy", "0.9"]
    assert main(["heal", str(pruned_folder), "--output", str(tmp_path / "healed"), *options(text), *mixed]) == 0
    healed, pruned = lit_prune.load(tmp_path / "healed"), lit_prune.load(pruned_folder)
    assert {name: each.shape for name, each in healed.named_parameters()} == {
        name: each.shape for name, each in pruned.named_parameters()
    }
    assert not torch.equal(logits(healed), logits(pruned))
    plan = PrunePlan.load(tmp_path / "healed")
    assert plan.healing["tokens"] == 640
    assert plan.healing["ppl_after"] < plan.healing["ppl_before"]
    assert plan.steps == PrunePlan.load(pruned_folder).steps
    told = capsys.readouterr().out
    assert "perplexity on validation windows" in told
    assert re.search(r"repeated 4-grams: \d+% -> \d+%, teacher \d+%\n.*\nsame next token as the teacher: \d+% ->", told)
    assert "healed on 640 tokens" in (tmp_path / "healed/README.md").read_text()


def test_requests_that_cannot_be_answered_are_refused_first(pruned_folder, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Lessons, "windows", lambda *_, **__: pytest.fail("before anything is written"))
    own = tmp_path / "own.txt"
    command = ["heal", str(pruned_folder), "--output", str(tmp_path / "healed"), *options(text), "--requests", str(own)]
    assert main(command) == 2
    assert f"cannot read the prompts {own}" in capsys.readouterr().err
    own.write_text("Who?\n" * 32)
    assert main([*command, "--training.repair", "0.1"]) == 2
    assert "more than 32 prompts are wanted, since so many are examined; found 32" in capsys.readouterr().err
    assert main([*command, "--distill", "false"]) == 2
    assert "requests are answered beside a teacher: leave out --requests, or --distill false" in capsys.readouterr().err


def test_a_healing_that_was_stopped_goes_on_by_the_same_command(pruned_folder, text, tmp_path, capsys, monkeypatch):
    command = ["heal", str(pruned_folder), "--output", str(tmp_path / "healed"), *options(f"{text}, self")]
    fit = L.Trainer.fit

    def stopped(self, *args, **named):
        self.callbacks.append(Dies(13, KeyboardInterrupt()))
        fit(self, *args, **named)

    monkeypatch.setattr(L.Trainer, "fit", stopped)
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 130
    assert lit_prune.load(tmp_path / "healed.healing/best") is not None
    monkeypatch.setattr(L.Trainer, "fit", fit)
    assert main([*command, "--training.tokens", "320"]) == 2
    assert "of a healing with other tokens: remove it" in capsys.readouterr().err
    assert main(command) == 0
    assert "going on with the training in" in capsys.readouterr().out
    assert not (tmp_path / "healed.healing").exists()
    alone = ["--output", str(tmp_path / "alone")]
    assert main([*command[:2], *alone, *command[4:]]) == 0
    ours, theirs = (lit_prune.load(tmp_path / name).state_dict() for name in ("healed", "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_race_halves_the_field():
    worth = {"a": [9, 4, 4, 1], "b": [9, 2, 2, 0], "c": [9, 3, 1, 5], "d": [9, 5, 5, 5], "e": [9, 2.5, 6, 6]}
    asked = []
    best, merits = race([*worth], lambda name, pause: asked.append((name, pause)) or worth[name][min(pause, 3)])
    assert best == "b"
    assert asked == [*((name, 1) for name in "abcde"), ("b", 2), ("e", 2), ("c", 2), ("c", 4), ("b", 4)]
    assert merits == {"a": [4], "b": [2, 2, 0], "c": [3, 1, 5], "d": [5], "e": [2.5, 6]}
    assert race(["a"], lambda *_: pytest.fail("one is no race")) == ("a", {})


def test_of_prunings_and_rates_the_best_is_healed_as_if_alone(pruned_folder, text, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    few = ["--data", str(text), "--window", "16", "--num_windows", "4", "--compensate", "none", "--num_unseen", "0"]
    assert main(["prune", str(tmp_path / "tiny"), "--output", str(other), "--amount", "0.3", *few]) == 0
    healing = [*options(text), "--training.validations", "4", "--training.cross_entropy", "0.9"]
    four = ["heal", f"{other},{pruned_folder}", "--output", str(tmp_path / "best"), "--rates", "[1e-3, 1e-4]", *healing]
    trained = []

    def seen(*rows, **named):
        trained.append(named["pause"])
        return heal(*rows, **named)

    monkeypatch.setattr("lit_prune.healing.heal", seen)
    with monkeypatch.context() as patch:
        patch.setattr("lit_prune.export.save", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            main(four)
    assert trained == [1, 1, 1, 1, 2, 2, None]
    assert main(four) == 0
    assert trained == [1, 1, 1, 1, 2, 2, None, None], "what the race has found is kept"
    found = PrunePlan.load(tmp_path / "best").healing
    assert {*found["race"]} == {f"{name} at {rate}" for name in (other, pruned_folder) for rate in ("0.001", "0.0001")}
    assert sorted(len(each) for each in found["race"].values()) == [1, 1, 2, 2]
    best = min(found["race"], key=lambda name: (-len(found["race"][name]), found["race"][name][-1]))
    assert f"{best}: loss and repetition behind the first validations" in capsys.readouterr().out
    name, rate = best.split(" at ")
    assert found["training"]["learning_rate"] == float(rate)
    alone = ["heal", name, "--output", str(tmp_path / "alone"), *healing, "--training.learning_rate", rate]
    assert main(alone) == 0
    alone, raced = lit_prune.load(tmp_path / "alone"), lit_prune.load(tmp_path / "best")
    assert torch.equal(logits(alone), logits(raced))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
def test_an_adapter_loads_with_plain_peft(pruned_folder, text, tmp_path):
    out = tmp_path / "adapter"
    command = ["heal", str(pruned_folder), "--output", str(out), "--keep_adapter", "true", *options(text)]
    assert main([*command, "--distill", "false"]) == 0
    base = lit_prune.load(pruned_folder)
    plain = logits(base)
    adapted = PeftModel.from_pretrained(base, out)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(pruned_folder)
    assert not torch.allclose(logits(adapted), plain)
    merged = tmp_path / "merged"
    assert main(["heal", str(pruned_folder), "--output", str(merged), "--distill", "false", *options(text)]) == 0
    assert torch.allclose(logits(lit_prune.load(merged)), logits(adapted), atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_an_adapter_is_numbered_as_the_folder_it_belongs_to(architecture, tmp_path):
    folder = save(pruned_model(architecture), tmp_path / "pruned")
    student = DenseTeacher.of_pruned(tiny_model(architecture), lit_prune.load(folder)).student
    attach_lora(student, LoraHealing(rank=2))
    with torch.no_grad():
        for name, each in student.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.3)
    expected = logits(student)
    adapter = save_adapter(student, tmp_path / "adapter", base=str(folder))
    base = lit_prune.load(folder)
    assert base.config.num_hidden_layers == 3, "a block has left the list"
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, adapter)), expected)
    assert torch.equal(logits(student), expected)


def test_healing_on_what_the_dense_model_writes(pruned_folder, text, tmp_path):
    command = ["heal", str(pruned_folder), "--output", str(tmp_path / "healed"), *options(text), "--data", "self"]
    assert main(command) == 0
    assert PrunePlan.load(tmp_path / "healed").healing["data"] == ["self"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dense", "no/such"], "no/such"),
        (["--keep_adapter", "true", "--training.also", "[norms]"], "an adapter holds no norms"),
        (["--training.lr_schedule", "cosinus"], "cosinus"),
    ],
)
def test_what_cannot_work_is_one_line(pruned_folder, text, tmp_path, capsys, extra, message):
    assert main(["heal", str(pruned_folder), "--output", str(tmp_path / "out"), *options(text), *extra]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"cross_entropy": 2}, {"temperature": 0}, {"hidden": -1}])
@pytest.mark.parametrize("settings", [Distillation, HealingSettings])
def test_distillation_that_cannot_be_is_refused(options, settings):
    with pytest.raises(LitPruneError, match="distillation takes"):
        settings(**options)
