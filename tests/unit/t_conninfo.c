/* agent/conninfo: connection strings without their passwords, and one value of them. */
#include "agent/conninfo.h"
#include "tests/tap.h"

static const struct {
    const char *given, *shown; /* shown NULL: refused */
} rows[] = {
    {"", ""},
    {"host=db1 port=5432", "host=db1 port=5432"},
    {"host=db1 password=secret port=5432", "host=db1 port=5432"},
    {"password='it\\'s secret' host=db1", "host=db1"},
    {"password=a\\ b host=db1", "host=db1"},
    {"  password = x   host = 'db 1' ", "host='db 1'"},
    {"sslpassword=k sslkey=/k passfile=/p", "sslkey=/k passfile=/p"},
    {"user=password application_name='password=1'", "user=password application_name='password=1'"},
    {"password=", ""},
    {"host=db1 password='open", NULL},
    {"secret", NULL},
    {"=secret", NULL},
    {"postgresql://db1:5432/app", "postgresql://db1:5432/app"},
    {"postgresql://u:secret@db1:5432/app?sslmode=require",
     "postgresql://u@db1:5432/app?sslmode=require"},
    {"postgresql://u:pa?ss@db1/app?port=1", "postgresql://u@db1/app?port=1"},
    {"postgresql://u?x@db1", "postgresql://u?x@db1"},
    {"postgresql://db1/a@b:c", "postgresql://db1/a@b:c"},
    {"host=db1 oauth_client_secret=a scram_client_key=b scram_server_key=c", "host=db1"},
    {"postgres://u@[::1]:5432/", "postgres://u@[::1]:5432/"},
    {"postgres://u:p@a:1,b:2/x?password=s&target_session_attrs=any&sslpassword=q",
     "postgres://u@a:1,b:2/x?target_session_attrs=any"},
    {"postgres://db1/x?pass%77ord=secret&port=1", "postgres://db1/x?port=1"},
};

static const struct {
    const char *given, *shown;
} masked[] = {
    {"host=db1 password='it\\'s' port=5432", "host=db1 password=*** port=5432"},
    {"postgresql://u:secret@db1/app?sslpassword=q&port=1",
     "postgresql://u:***@db1/app?sslpassword=***&port=1"},
    {"postgresql://u:p:a?s@db1?port=1", "postgresql://u:***@db1?port=1"},
    {"postgres://db1/x?pass%77ord=secret", "postgres://db1/x"},
};

static const struct {
    const char *given, *value; /* of application_name; NULL: none */
} values[] = {
    {"", NULL},
    {"host=db1", NULL},
    {"host=db1 application_name=db2 port=1", "db2"},
    {"application_name = db2", "db2"},
    {"application_name='db 2'", "db 2"},
    {"application_name='it\\'s' host=db1", "it's"},
    {"application_name=a\\ b\\\\c", "a b\\c"},
    {"application_name=a\\", "a"},
    {"application_name=", ""},
    {"application_name=''", ""},
    {"application_name=db2 application_name=db3", "db3"},
    {"fallback_application_name=db9", NULL},
    {"host='x application_name=db9'", NULL},
    {"application_name=db2 host='open", NULL},
    {"application_name=db2 secret", NULL},
    {"postgresql://u:s?application_name=x@db1/app?port=1&application_name=db2", "db2"},
    {"postgresql://db1?application_name=db%202", "db 2"},
    {"postgresql://db1?application%5Fname=db2", "db2"},
    {"postgresql://db1?application_name=a&application_name=b", "b"},
    {"postgresql://db1?application_name=", ""},
    {"postgresql://db1?application_name", NULL},
    {"postgresql://db1?application_name=%2", NULL},
    {"postgresql://db1?application_name=%zz", NULL},
    {"postgresql://db1?application_name=a%00b", NULL},
    {"postgresql://application_name=x@db1/application_name=x", NULL},
};

static void check_values(void)
{
    char text[128], small[8];
    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        bool found = conninfo_value(values[i].given, "application_name", text, sizeof(text));
        ok(found == (values[i].value != NULL), "%s: %s", values[i].given, found ? "it" : "none");
        is_str(text, values[i].value ? values[i].value : "", "and what it is");
    }
    ok(conninfo_value("application_name=1234567", "application_name", small, sizeof(small)),
       "there is just room for it");
    ok(!conninfo_value("application_name=12345678", "application_name", small, sizeof(small)),
       "there is none");
    is_str(small, "", "then it is not cut");
}

int main(void)
{
    char text[128], small[8];
    check_values();
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        bool good = conninfo_public(rows[i].given, text, sizeof(text));
        ok(good == (rows[i].shown != NULL), "%s: %s", rows[i].given, good ? "known" : "refused");
        is_str(text, rows[i].shown ? rows[i].shown : "", "what is shown of it");
    }
    for (size_t i = 0; i < ARRAY_LEN(masked); i++) {
        ok(conninfo_masked(masked[i].given, text, sizeof(text)), "%s: known", masked[i].given);
        is_str(text, masked[i].shown, "what people see of it");
    }
    ok(!conninfo_public("host=db1.example.com", small, sizeof(small)), "no room");
    is_str(small, "", "then nothing is shown");
    return done();
}
