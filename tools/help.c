/* help.c - the option tables, printed whole. */
#include <stdio.h>
#include <string.h>

#include "base/config.h"
#include "model/model.h"
#include "tools/tools.h"

/* Bounds as the tables use them: the widest value of the type means "no bound". */
static void range_print(const struct option *option)
{
    static const double no_limit = 9.2e18;

    switch (option->type) {
    case OPTION_BOOL:
        printf("true, false");
        return;
    case OPTION_STRING:
        printf("text");
        return;
    case OPTION_NAME:
    case OPTION_CHOICE:
        for (const char *c = option->choices ? option->choices : option_names(option);
             c && *c != '\0'; c++) {
            printf(*c == '|' ? ", " : "%c", *c);
        }
        printf("%s", option->file ? ", FILE" : "");
        return;
    case OPTION_INT:
    case OPTION_REAL:
        break;
    }
    printf("%s, ", option->type == OPTION_INT ? "integer" : "real");
    if (option->max >= no_limit) {
        printf("%.10g or more", option->min);
    } else {
        printf("%.10g to %.10g", option->min, option->max);
    }
}

static void table_markdown(const struct option *table, size_t count)
{
    printf("| key | values | default | meaning |\n|---|---|---|---|\n");
    for (size_t i = 0; i < count; i++) {
        const char *text = table[i].default_value;
        printf("| `%s` | ", table[i].name);
        range_print(&table[i]);
        if (text != NULL && text[0] != '\0') {
            printf(" | `%s` | %s |\n", text, table[i].help);
        } else {
            printf(" | | %s |\n", table[i].help);
        }
    }
}

void help_config(bool markdown)
{
    if (markdown) {
        printf("## Keys of a run\n\n");
        table_markdown(config_options, config_options_count);
        printf("\n## Keys of config.json\n\n");
        table_markdown(model_options, model_options_count);
        return;
    }
    printf("Keys of a run (in its YAML file, or key=value on the command line):\n\n");
    option_help(config_options, config_options_count, "", stdout);
    printf("\nKeys of the model (config.json; dense.X is short for model.dense_pattern.X):\n\n");
    option_help(model_options, model_options_count, "model.", stdout);
}
