/* agent/tls: which files make an identity, and what a certificate's role is. */
#include "agent/tls.h"

#include <sys/stat.h>

#include "tests/tap.h"
#include "tests/unit/t_tls_certificates.inc"

static char dir[] = "/tmp/tidemark-t_tls-XXXXXX";
static char certificate_file[64], key_file[64], ca_file[64];

static void write_file(const char *path, const char *text, mode_t mode)
{
    (void)unlink(path);
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0 || chmod(path, mode) < 0) {
        printf("Bail out! cannot write %s\n", path);
        exit(1);
    }
}

static int load(const char *certificate, const char *key, const char *ca, mode_t key_mode,
                struct tls **ret, struct err *err)
{
    struct tls_files files = {certificate_file, key_file, ca_file};
    write_file(certificate_file, certificate, 0644);
    write_file(key_file, key, key_mode);
    write_file(ca_file, ca, 0644);
    err_clear(err);
    return tls_load(&files, ret, err);
}

static void test_good(void)
{
    struct tls *tls = NULL;
    struct err err;
    time_t expires = 0;
    if (!ok(load(agent_pem, agent_key, ca_pem, 0400, &tls, &err) == 0, "an agent's files"))
        return;
    is_str(tls_certificate_pem(tls), agent_pem, "its certificate");
    is_str(tls_key_pem(tls), agent_key, "its key");
    is_str(tls_ca_pem(tls), ca_pem, "its CA");
    is_good(tls_check_own(tls, TLS_ROLE_AGENT, &expires, &err), &err, "peers accept it");
    is_u64(expires, 4733510400, "until 2120");
    is_err(tls_check_own(tls, TLS_ROLE_COORDINATOR, &expires, &err), &err, ERR_AUTH,
           "does not have role coordinator", "in its role");
    tls_forget_key(tls);
    ok(!tls_key_pem(tls), "the key is forgotten");
    is_good(tls_check_own(tls, TLS_ROLE_AGENT, &expires, &err), &err, "the rest is not");
    tls_free(tls);
    tls_free(NULL);
}

static void refuses(const char *certificate, const char *key, const char *ca, mode_t mode,
                    enum err_code code, const char *part, const char *what)
{
    struct tls *tls = NULL;
    struct err err;
    is_err(load(certificate, key, ca, mode, &tls, &err), &err, code, part, "%s", what);
    ok(!tls, "nothing is returned");
}

static void test_bad_files(void)
{
    static char long_text[70000];
    struct tls *tls = NULL;
    struct err err;
    memset(long_text, 'x', sizeof(long_text) - 1);
    refuses(agent_pem, agent_key, ca_pem, 0644, ERR_AUTH, "may be used by others (mode 0644)",
            "a key for all");
    refuses(agent_pem, agent_key, ca_pem, 0640, ERR_AUTH, "mode 0640", "a key for a group");
    refuses(agent_pem, coordinator_key, ca_pem, 0600, ERR_AUTH, "is not the certificate's",
            "another's key");
    refuses(agent_pem, encrypted_key, ca_pem, 0600, ERR_AUTH, "holds no key that can be read",
            "an encrypted key");
    refuses(agent_pem, agent_pem, ca_pem, 0600, ERR_AUTH, "holds no key", "no key");
    refuses(agent_key, agent_key, ca_pem, 0600, ERR_CONFIG, "holds no certificates",
            "no certificate");
    refuses(agent_pem, agent_key, "", 0600, ERR_CONFIG, "holds no certificates", "no CA");
    refuses(agent_pem, agent_key, long_text, 0600, ERR_CONFIG, "longer than 64 KiB", "a long CA");
    refuses(long_text, agent_key, ca_pem, 0600, ERR_CONFIG, "longer than 64 KiB",
            "a long certificate");
    struct tls_files files = {"/nonexistent/crt", key_file, ca_file};
    is_err(tls_load(&files, &tls, &err), &err, ERR_CONFIG, "open '/nonexistent/crt'", "no file");
    files = (struct tls_files){certificate_file, dir, ca_file};
    write_file(certificate_file, agent_pem, 0644);
    is_err(tls_load(&files, &tls, &err), &err, ERR_AUTH, "is not a file", "a directory");
}

static void own(const char *certificate, const char *key, const char *ca, const char *part,
                const char *what)
{
    struct tls *tls = NULL;
    struct err err;
    time_t expires = 77;
    is_good(load(certificate, key, ca, 0600, &tls, &err), &err, "%s is loaded", what);
    is_err(tls_check_own(tls, TLS_ROLE_AGENT, &expires, &err), &err, ERR_AUTH, part,
           "peers refuse it");
    is_u64(expires, 77, "nothing was written");
    tls_free(tls);
}

static void test_own(void)
{
    own(agent_pem, agent_key, other_ca_pem, "The certificate issuer is unknown", "another CA's");
    own(expired_pem, expired_key, ca_pem, "expired certificate", "an expired one");
    own(client_only_pem, client_only_key, ca_pem, "intended purpose", "a client's");
    own(coordinator_pem, coordinator_key, ca_pem, "does not have role agent", "a coordinator's");
}

static void test_roles(void)
{
    struct err err;
    const char *role = TLS_ROLE_COORDINATOR;
    is_good(tls_check_role(coordinator_pem, role, &err), &err, "a unit");
    is_good(tls_check_role(uri_pem, role, &err), &err, "a URI among others");
    is_good(tls_check_role(units_pem, role, &err), &err, "one unit of several");
    is_good(tls_check_role(agent_pem, TLS_ROLE_AGENT, &err), &err, "the other role");
    is_err(tls_check_role(agent_pem, role, &err), &err, ERR_AUTH,
           "the certificate of 'CN=db1,OU=agent,O=Tests' does not have role coordinator", "no");
    is_str(err.hint,
           "its subject needs OU = coordinator, or its alternative names URI tidemark:coordinator",
           "what it needs");
    is_err(tls_check_role(nul_pem, role, &err), &err, ERR_AUTH, "role coordinator", "a NUL inside");
    is_err(tls_check_role(dns_pem, role, &err), &err, ERR_AUTH, "role coordinator", "a DNS name");
    is_err(tls_check_role(uri_pem, TLS_ROLE_AGENT, &err), &err, ERR_AUTH, "role agent",
           "another URI");
    is_err(tls_check_role("nonsense", role, &err), &err, ERR_CONFIG, "holds no certificates",
           "no certificate");
}

int main(void)
{
    if (!mkdtemp(dir))
        return 1;
    (void)snprintf(certificate_file, sizeof(certificate_file), "%s/crt", dir);
    (void)snprintf(key_file, sizeof(key_file), "%s/key", dir);
    (void)snprintf(ca_file, sizeof(ca_file), "%s/ca", dir);
    test_good();
    test_bad_files();
    test_own();
    test_roles();
    (void)unlink(certificate_file);
    (void)unlink(key_file);
    (void)unlink(ca_file);
    (void)rmdir(dir);
    return done();
}
