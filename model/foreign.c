/* foreign.c - what the configurations of LLaMA, Mistral, Qwen, Gemma, GPT-NeoX and their like say of the arithmetic. */
#include "model/foreign.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct foreign {
    const char *key;
    const char *ours;  /* the key of ours that must say the same; NULL: one of `fixed` */
    const char *fixed; /* the values that mean what is computed here, "a|b" */
    const char *why;   /* what is computed here, where `fixed` says */
};

static const char plain_rope[] = "positions are plain rotary ones";
static const char whole_sequence[] = "attention sees the whole sequence";
static const char no_factor[] = "nothing is multiplied there";
static const char no_cap[] = "logits and scores are not capped";
static const char one_ffn[] = "a layer has one FFN, no experts";

static const struct foreign table[] = {
    {"hidden_size", "dim", NULL, NULL},
    {"n_embd", "dim", NULL, NULL},
    {"num_hidden_layers", "n_layer", NULL, NULL},
    {"num_attention_heads", "n_head", NULL, NULL},
    {"num_key_value_heads", "n_local_heads", NULL, NULL},
    {"rope_theta", "rope_base", NULL, NULL},
    {"rotary_emb_base", "rope_base", NULL, NULL},
    {"partial_rotary_factor", "rotary_pct", NULL, NULL},
    {"rms_norm_eps", "norm_eps", NULL, NULL},
    {"layer_norm_eps", "norm_eps", NULL, NULL},
    {"layer_norm_epsilon", "norm_eps", NULL, NULL},
    {"attention_bias", "use_linear_bias", NULL, NULL},
    {"mlp_bias", "use_linear_bias", NULL, NULL},
    {"qk_layernorm", "use_qk_norm", NULL, NULL},
    {"rope_type", NULL, "default", plain_rope},
    {"type", NULL, "default", plain_rope},
    {"factor", NULL, "1", plain_rope},
    {"no_rope_layers", NULL, "", plain_rope},
    {"window_size", NULL, "", whole_sequence},
    {"window_type", NULL, "", whole_sequence},
    {"sliding_window", NULL, "", whole_sequence},
    {"attention_chunk_size", NULL, "", whole_sequence},
    {"attn_logit_softcapping", NULL, "", no_cap},
    {"final_logit_softcapping", NULL, "", no_cap},
    {"clip_qkv", NULL, "", no_cap},
    {"query_pre_attn_scalar", NULL, "", "scores are divided by the root of head_dim"},
    {"attention_multiplier", NULL, "", "scores are divided by the root of head_dim"},
    {"scale_attn_by_inverse_layer_idx", NULL, "false",
     "scores are divided by the root of head_dim"},
    {"logit_scale", NULL, "1", no_factor},
    {"logits_scaling", NULL, "1", no_factor},
    {"residual_multiplier", NULL, "1", no_factor},
    {"embedding_multiplier", NULL, "1", no_factor},
    {"num_local_experts", NULL, "0|1", one_ffn},
    {"num_experts", NULL, "0|1", one_ffn},
    {"n_routed_experts", NULL, "0|1", one_ffn},
    {"hidden_act", NULL, "silu|swish", "the FFN is SwiGLU"},
    {"hidden_activation", NULL, "silu|swish", "the FFN is SwiGLU"},
};

static const struct foreign *foreign_find(const char *key)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(table[i].key, key) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

static void value_print(const struct json *value, struct foreign_key *out)
{
    int64_t integer;
    double real;
    bool flag;
    if (json_get_bool(value, &flag)) {
        snprintf(out->text, sizeof out->text, "%s", flag ? "true" : "false");
    } else if (json_get_int(value, &integer)) {
        snprintf(out->text, sizeof out->text, "%lld", (long long)integer);
    } else if (json_get_real(value, &real)) {
        snprintf(out->text, sizeof out->text, "%.17g", real);
    } else if (json_type(value) == JSON_STRING) {
        snprintf(out->text, sizeof out->text, "%s", json_get_string(value));
    } else {
        out->object = true;
    }
}

/* Of Qwen: a width of a window that is not used. */
static bool window_unused(const struct foreign_keys *keys)
{
    for (int i = 0; i < keys->count; i++) {
        if (strcmp(keys->key[i].key, "use_sliding_window") == 0) {
            return strcmp(keys->key[i].text, "false") == 0;
        }
    }
    return false;
}

static void members_note(struct foreign_keys *keys, const struct json *object, const char *place)
{
    for (size_t i = 0; i < json_size(object); i++) {
        const char *name;
        const struct json *value = json_member(object, i, &name);
        (void)foreign_note(keys, name, value, place);
    }
}

bool foreign_note(struct foreign_keys *keys, const char *key, const struct json *value,
                  const char *place)
{
    const struct foreign *what = foreign_find(key);
    bool rope = strcmp(key, "rope_parameters") == 0 || strcmp(key, "rope_scaling") == 0;
    bool known = what || rope || strcmp(key, "use_sliding_window") == 0;
    if (json_type(value) == JSON_NULL || keys->count == FOREIGN_MOST) {
        return known;
    }
    if (rope && json_type(value) == JSON_OBJECT) {
        members_note(keys, value, place);
        return true;
    }
    if (known) {
        struct foreign_key *out = &keys->key[keys->count++];
        *out = (struct foreign_key){.what = what ? what : rope ? foreign_find("rope_type") : NULL};
        snprintf(out->key, sizeof out->key, "%s", key);
        snprintf(out->place, sizeof out->place, "%s", place);
        value_print(value, out);
    }
    return known;
}

/* "silu" in "silu|swish"; numbers by value. */
static bool says_the_same(const char *text, const char *other, size_t length)
{
    char word[64], *end, *other_end;
    snprintf(word, sizeof word, "%.*s", (int)length, other);
    double a = strtod(text, &end), b = strtod(word, &other_end);
    if (text[0] != '\0' && word[0] != '\0' && *end == '\0' && *other_end == '\0') {
        return fabs(a - b) <= 1e-12 * fabs(b);
    }
    return strcmp(text, word) == 0;
}

static bool is_fixed(const char *text, const char *fixed)
{
    for (const char *at = fixed; *at;) {
        size_t length = strcspn(at, "|");
        if (says_the_same(text, at, length)) {
            return true;
        }
        at += length + (at[length] == '|');
    }
    return false;
}

static status_t foreign_check_one(const struct foreign_keys *keys, const struct foreign_key *key,
                                  const struct model_config *config)
{
    const struct foreign *what = key->what;
    const char *text = key->object ? "something of several parts" : key->text;
    char ours[CONFIG_STRING];
    if (!what || (strcmp(key->key, "sliding_window") == 0 && window_unused(keys))) {
        return STATUS_OK;
    }
    if (what->ours) {
        const struct option *option = option_find(model_options, model_options_count, what->ours);
        option_print(option, config, ours, sizeof ours);
        return !key->object && says_the_same(key->text, ours, strlen(ours))
                   ? STATUS_OK
                   : FAIL(STATUS_INVALID,
                          "%s: %s is %s, which here is called %s, and that is %s: set model.%s, or "
                          "remove "
                          "the other key",
                          key->place, key->key, text, what->ours, ours, what->ours);
    }
    bool gelu = strncmp(key->key, "hidden_act", 10) == 0 && config->model_type == MODEL_MUDDPYTHIA;
    if (!key->object && is_fixed(key->text, gelu ? "gelu" : what->fixed)) {
        return STATUS_OK;
    }
    return FAIL(STATUS_UNSUPPORTED, "%s: %s is %s, and here %s (%s%s)", key->place, key->key, text,
                gelu ? "the FFN is GELU" : what->why,
                what->fixed[0] ? "it may be null or " : "it may only be null",
                gelu ? "gelu" : what->fixed);
}

status_t foreign_check(const struct foreign_keys *keys, const struct model_config *config)
{
    for (int i = 0; i < keys->count; i++) {
        TRY(foreign_check_one(keys, &keys->key[i], config));
    }
    return STATUS_OK;
}
