"""A draft over the dense model's own weights: it changes what is fast, never what is written."""

import copy
import functools
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import lit_prune
from lit_prune.anatomy import cache_of, find_sublayers
from lit_prune.errors import LitPruneError, ModelError, PlanError
from lit_prune.plan import Candidate, PrunePlan, PruneStep
from lit_prune.surgery import remove, sharing_copy
from tests.tiny import NUM_BLOCKS, tiny_model
from tests.zoo import ZOO

NEW = 12
GONE = ("attention.1", "mlp.2")
TEXT = torch.randint(3, 100, (1, 20), generator=torch.Generator().manual_seed(0))
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "use_cache": True}


def plan_of(model, names=GONE):
    anatomy, gone, steps = find_sublayers(model), [], []
    for candidate in map(Candidate.parse, names):
        freed = anatomy.num_freed([*gone, *candidate.sublayers]) - anatomy.num_freed(gone)
        gone += candidate.sublayers
        steps.append(PruneStep(removed=candidate, num_parameters=freed))
    return PrunePlan(model=anatomy.facts(), steps=tuple(steps))


@functools.cache
def llama():
    return tiny_model("llama", eos_token_id=None)


def tensors(model):
    return {name: each for name, each in (*model.named_parameters(), *model.named_buffers()) if each.numel()}


def num_bytes(*models):
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for model in models
        for each in tensors(model).values()
    }
    return sum(storages.values())


@torch.no_grad()
def greedily(model, text):
    for _ in range(NEW):
        logits = model(input_ids=text, use_cache=False).logits[:, -1]
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
    return text


QUICK = ("llama", "gemma3", "gpt2", "falcon 7B", "bloom", "mixtral")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
def test_greedy_text_is_the_dense_models_and_no_weight_is_copied(name):
    dense = tiny_model(name, eos_token_id=None)
    before, expected = num_bytes(dense), greedily(dense, TEXT)
    with torch.no_grad():
        logits = dense(input_ids=TEXT).logits
    draft = lit_prune.speculative(dense, plan_of(dense), num_tokens=4)
    own = tensors(dense)
    assert all(each.data_ptr() == own[place].data_ptr() for place, each in tensors(draft).items())
    assert num_bytes(dense, draft) == before
    assert len(find_sublayers(dense).ids) == 2 * NUM_BLOCKS > len(find_sublayers(draft).ids) == 2 * NUM_BLOCKS - 2
    drafted = []
    draft.register_forward_hook(lambda *_: drafted.append(1))
    assert torch.equal(dense.generate(TEXT, assistant_model=draft, **GREEDY), expected)
    assert drafted
    with torch.no_grad():
        assert torch.equal(dense(input_ids=TEXT).logits, logits)


def independent(name, names=GONE):
    """A pruned model of its own, that shares nothing."""
    model = copy.deepcopy(llama()) if name == "llama" else tiny_model(name, eos_token_id=None)
    remove(model, [each for one in names for each in Candidate.parse(one).sublayers])
    return model


def assisted(model, assistant, text=TEXT, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return model.generate(text, assistant_model=assistant, **{**GREEDY, **options})


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("num_tokens", [1, 3, None])
def test_sampling_is_that_with_a_separate_pruned_model(name, num_tokens):
    dense, other = tiny_model(name, eos_token_id=None), independent(name)
    draft = lit_prune.speculative(dense, plan_of(dense), num_tokens=num_tokens)
    other.generation_config = copy.deepcopy(draft.generation_config)
    options = {"do_sample": True, "temperature": 1.5, "top_k": 30}
    found = assisted(dense, draft, **options)
    assert torch.equal(found, assisted(tiny_model(name, eos_token_id=None), other, **options))
    assert not torch.equal(found, greedily(dense, TEXT))


@pytest.mark.slow
def test_sampled_tokens_are_distributed_as_the_dense_models():
    dense = tiny_model("llama", eos_token_id=None)
    draft = lit_prune.speculative(dense, plan_of(dense), num_tokens=2)
    with torch.no_grad():
        expected = dense(input_ids=TEXT).logits[0, -1].softmax(-1)
        proposed = draft(input_ids=TEXT).logits[0, -1].softmax(-1)
    assert (expected - proposed).abs().sum() > 0.5, "a draft that says the same would prove nothing"
    number = 400
    torch.manual_seed(0)
    options = {**GREEDY, "do_sample": True, "max_new_tokens": 3, "top_k": 0}
    first = [int(dense.generate(TEXT, assistant_model=draft, **options)[0, TEXT.shape[1]]) for _ in range(number)]
    counts = torch.bincount(torch.tensor(first), minlength=len(expected))
    likely = expected > 5 / number
    binned = torch.stack([counts[likely], expected[likely] * number])
    seen, due = torch.cat([binned, torch.stack([number - binned[0].sum(), number - binned[1].sum()])[:, None]], dim=1)
    statistic, freedom = ((seen - due) ** 2 / due).sum(), len(due) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_left_padding_and_an_own_smaller_cache():
    dense = llama()
    draft = lit_prune.speculative(dense, plan_of(dense, ["attention.0", "attention.2", "mlp.1"]), num_tokens=4)
    padded, mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), TEXT], dim=1), torch.ones(1, 25, dtype=torch.long)
    mask[0, :5] = 0
    found = assisted(dense, draft, padded, attention_mask=mask)
    assert torch.equal(found[:, 5:], greedily(dense, TEXT))
    with torch.no_grad():
        sizes = [
            sum(
                each.keys.numel()
                for each in cache_of(model(input_ids=TEXT, use_cache=True)).layers
                if getattr(each, "keys", None) is not None
            )
            for model in (dense, draft)
        ]
    assert sizes[1] == sizes[0] / 2


def test_model_and_draft_run_at_the_same_time():
    dense = llama()
    draft = lit_prune.speculative(dense, plan_of(dense))
    expected = [greedily(model, TEXT) for model in (dense, independent("llama"))]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda model: greedily(model, TEXT), [dense, draft] * 4))
    assert all(torch.equal(text, expected[number % 2]) for number, text in enumerate(found))


def test_whole_blocks_leave_the_drafts_stack_alone():
    dense = llama()
    draft = lit_prune.speculative(dense, plan_of(dense, ["block.0", "block.2"]), num_tokens=4)
    assert (draft.config.num_hidden_layers, dense.config.num_hidden_layers) == (2, 4)
    assert [each.self_attn.layer_idx for each in dense.model.layers] == [0, 1, 2, 3]
    assert torch.equal(assisted(dense, draft), greedily(dense, TEXT))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_and_weights_that_are_trained_later_are_shared():
    model = get_peft_model(tiny_model("llama", eos_token_id=None), LoraConfig(init_lora_weights=False)).eval()
    draft = lit_prune.speculative(model, plan_of(model.get_base_model()), num_tokens=4)
    own = {each.data_ptr() for each in model.parameters()}
    assert {each.data_ptr() for each in draft.parameters()} < own
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    assert torch.equal(assisted(model, draft), greedily(model, TEXT))
    separate = copy.deepcopy(model.get_base_model())
    remove(separate, [each for one in GONE for each in Candidate.parse(one).sublayers])
    assert torch.equal(greedily(draft, TEXT), greedily(separate, TEXT))


def test_offloaded_weights_stay_where_they_are(tmp_path):
    dense, expected = tiny_model("llama", eos_token_id=None), greedily(llama(), TEXT)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    layers = {f"model.layers.{number}": "disk" if number else "cpu" for number in range(NUM_BLOCKS)}
    dense = dispatch_model(dense, {**places, **layers}, main_device="cpu", offload_dir=tmp_path)
    draft = lit_prune.speculative(dense, plan_of(dense), num_tokens=4)
    assert all(model.model.layers[3].mlp.up_proj.weight.is_meta for model in (dense, draft))
    assert torch.equal(assisted(dense, draft), expected)
    assert torch.equal(greedily(draft, TEXT), greedily(independent("llama"), TEXT))


def test_tensors_that_are_no_parameters_are_shared_too():
    dense = tiny_model("llama")
    dense.lm_head.state = SimpleNamespace(packed=torch.arange(4), name="int8")
    twin = sharing_copy(dense)
    assert twin.lm_head.state is not dense.lm_head.state
    assert twin.lm_head.state.packed is dense.lm_head.state.packed
    assert twin.lm_head.weight is dense.lm_head.weight


def test_of_a_compensated_plan_the_removals_alone_are_taken(tmp_path):
    batches, dense = [{"input_ids": TEXT.reshape(4, 5)}], tiny_model("llama", eos_token_id=None)
    pruned = copy.deepcopy(dense)
    plan = lit_prune.prune(pruned, batches, amount=0.15, compensate="refit", progress=False)
    plan.save(tmp_path / "prune_plan.json")
    draft = lit_prune.speculative(dense, tmp_path, num_tokens=4)
    assert set(find_sublayers(draft).removed) == set(plan.removed)
    assert torch.equal(greedily(draft, TEXT), greedily(independent("llama", map(str, plan.removed)), TEXT))
    assert torch.equal(assisted(dense, draft), assisted(dense, pruned))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: (llama(), plan_of(llama(), [f"attention.{number}" for number in range(4)])),
            PlanError,
            "no attention",
        ),
        (lambda: (tiny_model("llama", num_hidden_layers=6), plan_of(llama())), PlanError, "blocks"),
        (lambda: (llama(), "nowhere.json"), PlanError, "cannot read the plan"),
        (
            lambda: (
                AutoModelForCausalLM.from_config(
                    AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)
                ),
                plan_of(llama()),
            ),
            ModelError,
            "cannot be wound back",
        ),
    ],
    ids=["no attention", "another model", "no plan", "a state"],
)
def test_what_cannot_draft_is_told_and_the_model_is_as_it_was(make, error, message):
    model, plan = make()
    before = dict(model.named_modules())
    with pytest.raises(error, match=message):
        lit_prune.speculative(model, plan)
    assert dict(model.named_modules()) == before


def test_a_draft_of_no_tokens_is_refused():
    with pytest.raises(LitPruneError, match="1 token or more"):
        lit_prune.speculative(llama(), plan_of(llama()), num_tokens=0)
