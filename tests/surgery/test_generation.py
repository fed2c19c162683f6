"""A pruned model writes what the dense model writes with the same outputs zeroed by hooks, one full pass a token."""

import copy
import functools
import gc

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, cache_utils, generation, pipeline
from transformers.utils import is_flash_attn_2_available

from lit_prune.anatomy import cache_of, cache_option, find_sublayers
from lit_prune.export import save
from lit_prune.loading.models import load
from lit_prune.plan import SublayerId
from lit_prune.surgery import compact, mute, remove
from tests import naive
from tests.tiny import NUM_BLOCKS, character_tokenizer, tiny_model

UNTIED = {"tie_word_embeddings": False}
"""With a head of their own they do not just repeat themselves."""
MODELS = {
    "llama": {},
    "mistral": {},
    "gemma3": {**UNTIED, "layer_types": ["full_attention", "sliding_attention"] * 2},
    "cohere2": UNTIED,
    "gpt2": UNTIED,
    "falcon 7B": UNTIED,
    "mixtral": {},
}
NOT_CONTINUOUS = ["falcon 7B"]
"""Attention of its own that transformers' continuous batching fails on, the dense model's too."""
ATTENTION = tuple(("attention", block) for block in range(NUM_BLOCKS))
GONE = {
    "attention 0": ATTENTION[:1],
    "attention 0 and 1": ATTENTION[:2],
    "block 0": (("attention", 0), ("mlp", 0)),
    "mlp 1": (("mlp", 1),),
    "mixture": (("attention", 0), ("attention", 2), ("mlp", 0), ("mlp", 3)),
    "even attention": ATTENTION[0::2],
    "odd attention": ATTENTION[1::2],
    "all attention": ATTENTION,
}
NEW = 8
TEXT = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(TEXT)
PADDED[0, :7] = 0
ALONE = [text[mask.bool()] for text, mask in zip(TEXT, PADDED, strict=True)]
ENDS = list(range(3, 12))
"""So many tokens end the text that some beam soon has one."""

every_model = pytest.mark.parametrize("name", MODELS)


def sets(*names):
    return pytest.mark.parametrize("gone", [GONE[each] for each in names], ids=names)


with_cache = sets(*[each for each in GONE if each != "all attention"])
some_sets = sets("attention 0 and 1", "block 0", "mixture")


@functools.cache
def dense(name):
    return tiny_model(name, eos_token_id=None, **MODELS[name])


def ids(gone):
    return [SublayerId(block, kind) for kind, block in gone]


def pruned(name, gone):
    model = copy.deepcopy(dense(name))
    remove(model, ids(gone))
    return model


@torch.no_grad()
def written(model, tokens, length=NEW):
    tokens = torch.as_tensor(tokens)[None]
    for _ in range(length):
        best = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens[0, -length:].tolist()


@functools.cache
def reference(name, gone):
    """Both texts continued on their own, without padding, cache and `generate`."""
    with naive.zeroed(dense(name), name, gone):
        return [written(dense(name), text) for text in ALONE]


newer = pytest.mark.skipif(not hasattr(cache_utils, "DummyLayer"), reason="an older transformers keeps a length")


def new_tokens(model, **options):
    options = {"attention_mask": PADDED, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(TEXT, **options)[:, TEXT.shape[1] :].tolist()


def continued(model, texts, **options):
    """The same for texts [batch, seq] that are not padded."""
    output = model.generate(texts, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=-1, **options)
    return output[:, -NEW:].tolist()


@with_cache
@every_model
def test_greedy_with_every_cache(name, gone):
    model = pruned(name, gone)
    expected = reference(name, gone)
    assert expected != reference(name, ()), "the reference must change something"
    assert new_tokens(model) == expected
    assert new_tokens(model, use_cache=False) == expected
    assert new_tokens(model, cache_implementation="static") == expected
    assert new_tokens(model, **cache_option(model, DynamicCache())) == expected, (
        "a cache that was not told of the model"
    )
    assert new_tokens(model, prefill_chunk_size=5) == expected
    with mute(dense(name), ids(gone)):
        assert new_tokens(dense(name)) == expected


@every_model
def test_a_cache_is_continued(name):
    model = pruned(name, ATTENTION[:2])
    first = model.generate(TEXT, max_new_tokens=NEW, do_sample=False, pad_token_id=0, return_dict_in_generate=True)
    both = torch.cat([first.sequences, TEXT[:, :5]], dim=1)
    with naive.zeroed(dense(name), name, ATTENTION[:2]):
        expected = [written(dense(name), text) for text in both]
    assert continued(model, both, **cache_option(model, cache_of(first))) == expected


@some_sets
@pytest.mark.parametrize("early_stopping", [False, True])
@every_model
def test_beams(name, gone, early_stopping):
    model = pruned(name, gone)
    options = {"num_beams": 3, "num_return_sequences": 3}
    if early_stopping:
        options |= {"early_stopping": True, "eos_token_id": ENDS, "length_penalty": 0.5}
    with naive.zeroed(dense(name), name, gone):
        expected = new_tokens(dense(name), use_cache=False, **options)
    assert expected[::3] != reference(name, gone), "beams must differ from greedy"
    assert new_tokens(model, **options) == expected
    assert new_tokens(model, cache_implementation="static", **options) == expected


@some_sets
@every_model
def test_sampling(name, gone):
    def sample(model, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return new_tokens(model, do_sample=True, top_k=20, top_p=0.95, **options)

    with naive.zeroed(dense(name), name, gone):
        expected = sample(dense(name), use_cache=False)
    model = pruned(name, gone)
    assert expected != reference(name, gone)
    assert sample(model) == expected
    assert sample(model, cache_implementation="static") == expected


@some_sets
@every_model
def test_assisted_decoding(name, gone):
    for assistant_gone in (gone, GONE["attention 0"]):
        model, assistant = pruned(name, gone), pruned(name, assistant_gone)
        assistant.generation_config.update(assistant_confidence_threshold=0.0, num_assistant_tokens=4)
        calls = []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert continued(model, TEXT[1:], assistant_model=assistant) == reference(name, gone)[1:]
        assert assistant_gone != gone or len(calls) < NEW, "an assistant of the same mind is believed"
    twice = TEXT[1:].repeat(1, 2)
    with naive.zeroed(dense(name), name, gone):
        expected = written(dense(name), twice[0])
    assert continued(model, twice, prompt_lookup_num_tokens=3) == [expected]


@some_sets
@every_model
def test_eager_attention(name, gone):
    model = tiny_model(name, eos_token_id=None, attn_implementation="eager", **MODELS[name])
    remove(model, ids(gone))
    assert new_tokens(model) == reference(name, gone)
    assert model.config._attn_implementation == "eager" != dense(name).config._attn_implementation


@pytest.fixture
def frozen():
    """Continuous batching collects garbage twice, and would look through all of torch for longer than it generates."""
    gc.freeze()
    yield
    gc.unfreeze()


@newer
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@sets("attention 0", "mixture", "all attention")
@every_model
def test_continuous_batching(name, gone, implementation, frozen):
    texts = [[5, 6, 7], *(text.tolist() for text in ALONE)]
    if name in NOT_CONTINUOUS:
        assert continuously(copy.deepcopy(dense(name)), texts, implementation) == [[], [], []], "let it be tested"
        return
    with naive.zeroed(dense(name), name, gone):
        expected = [written(dense(name), text) for text in texts]
    assert continuously(pruned(name, gone), texts, implementation) == expected


def continuously(model, texts, implementation):
    """Texts of different length in steps of no more than 20 tokens, on pages of 8."""
    model.set_attn_implementation(implementation)
    found = model.generate_batch(
        texts,
        generation_config=GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=generation.ContinuousBatchingConfig(page_size=8, num_blocks=64, max_batch_tokens=20),
    )
    return [each.generated_tokens for each in found.values()]


@every_model
def test_all_attention_gone(name):
    model = pruned(name, ATTENTION)
    expected = reference(name, ATTENTION)
    assert new_tokens(model) == expected
    own = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert model.generate(TEXT, attention_mask=PADDED, generation_config=own)[:, -NEW:].tolist() == expected
    with naive.zeroed(dense(name), name, ATTENTION):
        beams = new_tokens(dense(name), use_cache=False, num_beams=3)
    assert new_tokens(model, num_beams=3) == beams
    with mute(dense(name), ids(ATTENTION)):
        assert new_tokens(dense(name)) == expected
    assert dense(name).config.use_cache is dense(name).generation_config.use_cache is True


@newer
@every_model
def test_all_attention_gone_and_a_cache_asked_for_is_an_error(name):
    model = pruned(name, ATTENTION)
    for options in ({}, cache_option(model, DynamicCache()), {"cache_implementation": "static"}):
        with pytest.raises(ValueError, match="only contain"):
            new_tokens(model, use_cache=True, **options)
    with pytest.raises((ValueError, RuntimeError), match=r"use_cache=True|requires a cache"):
        continued(model, TEXT[1:], prompt_lookup_num_tokens=3)
    with pytest.raises((ValueError, RuntimeError), match=r"only contain|requires a cache"):
        continued(dense(name), TEXT[1:], assistant_model=model)


@sets(*GONE)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_saved_and_loaded(name, gone, tmp_path):
    model = load(save(pruned(name, gone), tmp_path / "model"))
    assert new_tokens(model) == reference(name, gone)
    assert new_tokens(model, use_cache=False) == reference(name, gone)


@every_model
def test_whole_blocks_taken_out_of_the_stack(name, tmp_path):
    gone = (*GONE["block 0"], ("attention", 1), ("attention", 2), ("mlp", 2))
    model = pruned(name, gone)
    compact(model)
    assert len(find_sublayers(model).blocks) == 2, "the blocks 1 and 3 are left, and 1 without attention"
    expected = reference(name, gone)
    for each in (model, load(save(model, tmp_path / "model"))):
        assert new_tokens(each) == expected
        assert new_tokens(each, **cache_option(each, DynamicCache())) == expected
        assert new_tokens(each, cache_implementation="static") == expected


TEMPLATE = "{% for each in messages %}[{{ each.role }}] {{ each.content }}\n{% endfor %}[assistant] "


@sets(*GONE)
def test_chat_and_pipeline(gone):
    tokenizer = character_tokenizer(chat_template=TEMPLATE, padding_side="left")
    talker = tiny_model("llama", eos_token_id=None, vocab_size=len(tokenizer))
    chats = [[{"role": "user", "content": text}] for text in ("Hi", "How is the weather?")]
    prompts = [tokenizer.apply_chat_template(each, add_generation_prompt=True)["input_ids"] for each in chats]
    with naive.zeroed(talker, "llama", gone):
        expected = [tokenizer.decode(written(talker, each), skip_special_tokens=True) for each in prompts]
    remove(talker, ids(gone))
    speak = pipeline("text-generation", model=talker, tokenizer=tokenizer)
    for batch_size in (1, 2):
        answers = speak(chats, batch_size=batch_size, max_new_tokens=NEW, do_sample=False)
        assert [answer[0]["generated_text"][-1]["content"] for answer in answers] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs a GPU and flash-attn")
@some_sets
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_flash_attention_picks_the_best_token_as_far_as_bfloat16_can_tell(name, gone):
    model = pruned(name, gone).to("cuda", torch.bfloat16)
    model.set_attn_implementation("flash_attention_2")
    options = {"attention_mask": PADDED.cuda(), "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    found = model.generate(TEXT.cuda(), **options)[:, -NEW:].cpu()
    for text, new in zip(ALONE, found, strict=True):
        with naive.zeroed(dense(name), name, gone), torch.no_grad():
            logits = dense(name)(input_ids=torch.cat([text, new])[None], use_cache=False).logits[0, -NEW - 1 : -1]
        short = logits.max(-1).values - logits.gather(-1, new[:, None])[:, 0]
        assert (short / logits.std(-1)).max() < 0.3
