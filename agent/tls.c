/* See tls.h. libmicrohttpd asks for a certificate but takes every answer: the handshake is made to
 * fail here, so that a stranger never reaches the HTTP parser. The role is looked at by each
 * request instead, because its refusal can then say why. */
#include "agent/tls.h"

#include <assert.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/address.h"
#include "agent/clock.h"
#include "agent/log.h"
#include "io/file.h"
#include "io/secret.h"

enum {
    FILE_LEN_MAX = 64 << 10,
    CHAIN_MAX = 8,
    HANDSHAKE_MS = 10000,
    LINGER_MS = 1000,
    REFUSALS_LOGGED = 30, /* in each window: strangers must not fill the log */
    WINDOW_MS = 10000,
};

struct tls {
    char *certificate, *key, *ca; /* PEM with a NUL, each FILE_LEN_MAX + 1 bytes of secret.h */
    char *file;                   /* of the certificate, for messages */
    pthread_mutex_t mutex;        /* of what follows */
    uint64_t window;              /* of time, that `logged` counts in */
    unsigned logged, unlogged;
};

/* --- files -------------------------------------------------------------------------------------*/
static int read_pem(const char *path, int fd, char **ret, struct err *err)
{
    void *buf;
    size_t len;
    int rc = secret_alloc(FILE_LEN_MAX + 1, &buf, err);
    if (rc < 0)
        return rc;
    *ret = buf; /* zeroed: it ends with a NUL */
    if (read_all(fd, buf, FILE_LEN_MAX + 1, &len) < 0)
        return err_sys(err, ERR_CONFIG, "read '%s'", path);
    if (len > FILE_LEN_MAX)
        return err_set(err, ERR_CONFIG, "'%s' is longer than 64 KiB", path);
    return 0;
}

static int check_key_file(const char *path, int fd, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, ERR_CONFIG, "stat '%s'", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_AUTH, "key '%s' is not a file", path);
    if (st.st_mode & 077) {
        (void)err_set(err, ERR_AUTH, "key '%s' may be used by others (mode %04o)", path,
                      (unsigned)st.st_mode & 07777);
        return err_hint(err, "chmod 600 '%s'", path);
    }
    if (st.st_uid != 0 && st.st_uid != geteuid())
        return err_set(err, ERR_AUTH, "key '%s' belongs to user %u, not to root or to its reader",
                       path, (unsigned)st.st_uid);
    return 0;
}

static int read_file(const char *path, bool is_key, char **ret, struct err *err)
{
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return err_sys(err, ERR_CONFIG, "open '%s'", path);
    int rc = is_key ? check_key_file(path, fd, err) : 0;
    return rc < 0 ? rc : read_pem(path, fd, ret, err);
}

/* --- certificates ------------------------------------------------------------------------------*/
struct chain {
    gnutls_x509_crt_t crts[CHAIN_MAX];
    unsigned count;
};

static void chain_release(struct chain *chain)
{
    for (unsigned i = 0; i < chain->count; i++)
        gnutls_x509_crt_deinit(chain->crts[i]);
    chain->count = 0;
}

static gnutls_datum_t datum_of(const char *pem)
{
    return (gnutls_datum_t){.data = (unsigned char *)(uintptr_t)pem, .size = (unsigned)strlen(pem)};
}

static int chain_load(const char *name, const char *pem, struct chain *ret, struct err *err)
{
    gnutls_datum_t data = datum_of(pem);
    unsigned count = CHAIN_MAX;
    int rc = gnutls_x509_crt_list_import(ret->crts, &count, &data, GNUTLS_X509_FMT_PEM,
                                         GNUTLS_X509_CRT_LIST_IMPORT_FAIL_IF_EXCEED);
    ret->count = rc > 0 ? (unsigned)rc : 0;
    if (rc > 0)
        return 0;
    (void)err_set(err, ERR_CONFIG, "'%s' holds no certificates that can be read: %s", name,
                  gnutls_strerror(rc));
    return err_hint(err, "at most %d of them, in PEM", CHAIN_MAX);
}

/* The key id of both is the digest of the public key. */
static int check_pair(gnutls_x509_crt_t crt, gnutls_x509_privkey_t key, struct err *err)
{
    unsigned char of_crt[64], of_key[64];
    size_t crt_len = sizeof(of_crt), key_len = sizeof(of_key);
    if (gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA256, of_crt, &crt_len) < 0 ||
        gnutls_x509_privkey_get_key_id(key, GNUTLS_KEYID_USE_SHA256, of_key, &key_len) < 0)
        return err_set(err, ERR_AUTH, "the public key of the certificate cannot be read");
    if (crt_len != key_len || memcmp(of_crt, of_key, crt_len) != 0)
        return err_set(err, ERR_AUTH, "the key is not the certificate's");
    return 0;
}

static int check_key(const struct tls *tls, const struct tls_files *files, struct err *err)
{
    struct chain own = {.count = 0};
    gnutls_x509_privkey_t key;
    gnutls_datum_t data = datum_of(tls->key);
    int rc = chain_load(files->certificate_file, tls->certificate, &own, err);
    if (rc < 0)
        return rc;
    if (gnutls_x509_privkey_init(&key) < 0)
        abort();
    int bad = gnutls_x509_privkey_import2(key, &data, GNUTLS_X509_FMT_PEM, NULL, 0);
    rc = bad < 0 ? err_set(err, ERR_AUTH, "'%s' holds no key that can be read: %s", files->key_file,
                           gnutls_strerror(bad))
                 : check_pair(own.crts[0], key, err);
    if (bad == GNUTLS_E_DECRYPTION_FAILED)
        rc = err_hint(err, "it is encrypted: nobody is there to ask for its password");
    else if (bad >= 0 && rc < 0)
        rc = err_prefix(err, "'%s' and '%s'", files->certificate_file, files->key_file);
    gnutls_x509_privkey_deinit(key);
    chain_release(&own);
    return rc;
}

static int check_ca(const struct tls *tls, const struct tls_files *files, struct err *err)
{
    struct chain ca = {.count = 0};
    int rc = chain_load(files->ca_file, tls->ca, &ca, err);
    chain_release(&ca);
    return rc;
}

int tls_load(const struct tls_files *files, struct tls **ret, struct err *err)
{
    struct tls *tls = calloc(1, sizeof(*tls));
    if (!tls)
        return err_set(err, ERR_INTERNAL, "out of memory");
    (void)pthread_mutex_init(&tls->mutex, NULL);
    tls->file = strdup(files->certificate_file);
    int rc = tls->file ? 0 : err_set(err, ERR_INTERNAL, "out of memory");
    if (rc == 0)
        rc = read_file(files->certificate_file, false, &tls->certificate, err);
    if (rc == 0)
        rc = read_file(files->key_file, true, &tls->key, err);
    if (rc == 0)
        rc = read_file(files->ca_file, false, &tls->ca, err);
    if (rc == 0)
        rc = check_key(tls, files, err);
    if (rc == 0)
        rc = check_ca(tls, files, err);
    if (rc < 0) {
        tls_free(tls);
        return rc;
    }
    *ret = tls;
    return 0;
}

void tls_forget_key(struct tls *tls)
{
    secret_free(tls->key, FILE_LEN_MAX + 1);
    tls->key = NULL;
}

void tls_free(struct tls *tls)
{
    if (!tls)
        return;
    tls_forget_key(tls);
    secret_free(tls->certificate, FILE_LEN_MAX + 1);
    secret_free(tls->ca, FILE_LEN_MAX + 1);
    free(tls->file);
    (void)pthread_mutex_destroy(&tls->mutex);
    free(tls);
}

char *tls_certificate_pem(const struct tls *tls)
{
    return tls->certificate;
}

char *tls_key_pem(const struct tls *tls)
{
    return tls->key;
}

char *tls_ca_pem(const struct tls *tls)
{
    return tls->ca;
}

/* --- roles -------------------------------------------------------------------------------------*/
/* Lengths of GnuTLS may or may not count a NUL; one inside is never equal. */
static bool is_text(const char *buf, size_t size, const char *want)
{
    size_t len = strlen(want);
    return (size == len || (size == len + 1 && buf[len] == '\0')) && memcmp(buf, want, len) == 0;
}

static bool unit_is(gnutls_x509_crt_t crt, const char *role)
{
    for (unsigned i = 0;; i++) {
        char text[64];
        size_t size = sizeof(text);
        int rc = gnutls_x509_crt_get_dn_by_oid(crt, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, i, 0,
                                               text, &size);
        if (rc == 0 && is_text(text, size, role))
            return true;
        if (rc < 0 && rc != GNUTLS_E_SHORT_MEMORY_BUFFER)
            return false;
    }
}

static bool uri_is(gnutls_x509_crt_t crt, const char *role)
{
    char want[64];
    (void)snprintf(want, sizeof(want), "tidemark:%s", role);
    for (unsigned i = 0;; i++) {
        char text[64];
        size_t size = sizeof(text);
        int rc = gnutls_x509_crt_get_subject_alt_name(crt, i, text, &size, NULL);
        if (rc == GNUTLS_SAN_URI && is_text(text, size, want))
            return true;
        if (rc < 0 && rc != GNUTLS_E_SHORT_MEMORY_BUFFER)
            return false;
    }
}

static void subject_of(gnutls_x509_crt_t crt, char ret[TLS_SUBJECT_MAX])
{
    gnutls_datum_t text = {NULL, 0};
    (void)snprintf(ret, TLS_SUBJECT_MAX, "-");
    if (gnutls_x509_crt_get_dn3(crt, &text, 0) == 0)
        (void)snprintf(ret, TLS_SUBJECT_MAX, "%.*s", (int)text.size, (const char *)text.data);
    gnutls_free(text.data);
}

static int check_role(gnutls_x509_crt_t crt, const char *role, struct err *err)
{
    char subject[TLS_SUBJECT_MAX];
    if (unit_is(crt, role) || uri_is(crt, role))
        return 0;
    subject_of(crt, subject);
    (void)err_set(err, ERR_AUTH, "the certificate of '%s' does not have role %s", subject, role);
    return err_hint(err, "its subject needs OU = %s, or its alternative names URI tidemark:%s",
                    role, role);
}

int tls_check_role(const char *pem, const char *role, struct err *err)
{
    struct chain chain = {.count = 0};
    int rc = chain_load("the peer's certificate", pem, &chain, err);
    if (rc < 0)
        return rc;
    rc = check_role(chain.crts[0], role, err);
    chain_release(&chain);
    return rc;
}

/* --- verification ------------------------------------------------------------------------------*/
/* GnuTLS says it in sentences, of which the first is always the same. */
static int bad_chain(unsigned status, struct err *err)
{
    static const char first[] = "The certificate is NOT trusted. ";
    gnutls_datum_t text = {NULL, 0};
    (void)gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
    const char *from = text.data ? (const char *)text.data : "the certificate is not trusted";
    if (strncmp(from, first, strlen(first)) == 0 && from[strlen(first)])
        from += strlen(first);
    size_t len = strlen(from);
    while (len > 0 && strchr(". \n", from[len - 1]))
        len--;
    (void)err_set(err, ERR_AUTH, "%.*s", (int)len, from);
    gnutls_free(text.data);
    return -(int)err->code;
}

static const char *purpose_of(const char *role)
{
    return strcmp(role, TLS_ROLE_AGENT) == 0 ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
}

static gnutls_typed_vdata_st purpose_data(const char *role)
{
    const char *purpose = purpose_of(role);
    return (gnutls_typed_vdata_st){.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                   .data = (unsigned char *)(uintptr_t)purpose,
                                   .size = (unsigned)strlen(purpose)};
}

static int check_trust(const struct tls *tls, const struct chain *own, const char *role,
                       struct err *err)
{
    gnutls_x509_trust_list_t list;
    gnutls_datum_t ca = datum_of(tls->ca);
    gnutls_typed_vdata_st purpose = purpose_data(role);
    struct chain chain = *own; /* GnuTLS sorts it */
    unsigned status = GNUTLS_CERT_INVALID;
    if (gnutls_x509_trust_list_init(&list, 0) < 0)
        abort();
    int rc = gnutls_x509_trust_list_add_trust_mem(list, &ca, NULL, GNUTLS_X509_FMT_PEM, 0, 0);
    if (rc >= 0)
        rc = gnutls_x509_trust_list_verify_crt2(list, chain.crts, chain.count, &purpose, 1, 0,
                                                &status, NULL);
    gnutls_x509_trust_list_deinit(list, 1);
    return rc >= 0 && status == 0 ? 0 : bad_chain(status | GNUTLS_CERT_INVALID, err);
}

int tls_check_own(const struct tls *tls, const char *role, time_t *ret_expires, struct err *err)
{
    struct chain own = {.count = 0};
    int rc = chain_load(tls->file, tls->certificate, &own, err);
    if (rc < 0)
        return rc;
    time_t expires = gnutls_x509_crt_get_expiration_time(own.crts[0]);
    rc = check_trust(tls, &own, role, err);
    if (rc == 0)
        rc = check_role(own.crts[0], role, err);
    chain_release(&own);
    if (rc < 0)
        return err_prefix(err, "'%s'", tls->file);
    *ret_expires = expires;
    return 0;
}

/* --- sessions ----------------------------------------------------------------------------------*/
/* *ret_status: GNUTLS_CERT_…, of a failure. */
static int check_chain(gnutls_session_t session, const char *role, unsigned *ret_status,
                       struct err *err)
{
    unsigned count = 0;
    *ret_status = 0;
    if (!gnutls_certificate_get_peers(session, &count) || count == 0)
        return err_set(err, ERR_AUTH, "there is no client certificate");
    gnutls_typed_vdata_st purpose = purpose_data(role);
    int rc = gnutls_certificate_verify_peers(session, &purpose, 1, ret_status);
    if (rc < 0)
        return err_set(err, ERR_AUTH, "the certificate cannot be verified: %s",
                       gnutls_strerror(rc));
    return *ret_status == 0 ? 0 : bad_chain(*ret_status, err);
}

/* How many were left out before this one; false: this one is, too. */
static bool may_log(struct tls *tls, unsigned *ret_unlogged)
{
    (void)pthread_mutex_lock(&tls->mutex);
    uint64_t window = now_ms() / WINDOW_MS;
    if (window != tls->window) {
        tls->window = window;
        tls->logged = 0;
    }
    bool may = tls->logged < REFUSALS_LOGGED;
    *ret_unlogged = tls->unlogged;
    tls->unlogged = may ? 0 : tls->unlogged + 1;
    tls->logged += may;
    (void)pthread_mutex_unlock(&tls->mutex);
    return may;
}

static void log_refusal(gnutls_session_t session, const struct err *why)
{
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t len = sizeof(address);
    char text[ADDRESS_TEXT_MAX];
    struct tls_peer peer;
    unsigned unlogged;
    if (!may_log(gnutls_session_get_ptr(session), &unlogged))
        return;
    (void)getpeername(gnutls_transport_get_int(session), (struct sockaddr *)&address, &len);
    address_format(&address, text);
    tls_session_peer(session, &peer);
    log_warn("refused: address=%s subject=\"%s\" serial=%s unlogged=%u err=\"%s\"", text,
             peer.subject, peer.serial, unlogged, why->text);
}

static gnutls_alert_description_t alert_of(gnutls_session_t session, unsigned status)
{
    if (!gnutls_certificate_get_peers(session, NULL))
        return gnutls_protocol_get_version(session) >= GNUTLS_TLS1_3 ? GNUTLS_A_CERTIFICATE_REQUIRED
                                                                     : GNUTLS_A_HANDSHAKE_FAILURE;
    if (status & GNUTLS_CERT_EXPIRED)
        return GNUTLS_A_CERTIFICATE_EXPIRED;
    if (status & GNUTLS_CERT_SIGNER_NOT_FOUND)
        return GNUTLS_A_UNKNOWN_CA;
    return GNUTLS_A_BAD_CERTIFICATE;
}

/* Closing a socket with unread bytes resets the connection, and the alert may be lost with it: what
 * the peer has sent meanwhile, its request most likely, is read first. */
static void linger(int fd)
{
    char buf[4096];
    uint64_t end_ms = now_ms() + LINGER_MS, at_ms;
    (void)shutdown(fd, SHUT_WR);
    for (size_t rounds = 0; rounds < 32 && (at_ms = now_ms()) < end_ms; rounds++) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, (int)(end_ms - at_ms)) < 0 || recv(fd, buf, sizeof(buf), 0) == 0)
            return;
    }
}

/* Not a role: it is the request that says which may be here, and why this one may not. */
static int on_verify(gnutls_session_t session)
{
    struct err err;
    unsigned status;
    if (check_chain(session, TLS_ROLE_COORDINATOR, &status, &err) == 0)
        return 0;
    log_refusal(session, &err);
    (void)gnutls_alert_send(session, GNUTLS_AL_FATAL, alert_of(session, status));
    linger(gnutls_transport_get_int(session));
    return GNUTLS_E_CERTIFICATE_ERROR;
}

void tls_session_begin(void *session, struct tls *tls)
{
    assert(session && tls);
    gnutls_session_set_ptr(session, tls);
    /* Not GNUTLS_CERT_REQUIRE: that fails before on_verify(), without an alert or a line. */
    gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUEST);
    gnutls_session_set_verify_function(session, on_verify);
    gnutls_handshake_set_timeout(session, HANDSHAKE_MS);
}

static gnutls_x509_crt_t first_crt(gnutls_session_t session)
{
    unsigned count = 0;
    gnutls_x509_crt_t crt;
    const gnutls_datum_t *peers = gnutls_certificate_get_peers(session, &count);
    if (!peers || count == 0 || gnutls_x509_crt_init(&crt) < 0)
        return NULL;
    if (gnutls_x509_crt_import(crt, &peers[0], GNUTLS_X509_FMT_DER) < 0) {
        gnutls_x509_crt_deinit(crt);
        return NULL;
    }
    return crt;
}

void tls_session_peer(void *session, struct tls_peer *ret)
{
    unsigned char serial[TLS_SERIAL_MAX / 2 - 1];
    size_t size = sizeof(serial);
    gnutls_x509_crt_t crt = first_crt(session);
    (void)snprintf(ret->subject, sizeof(ret->subject), "-");
    (void)snprintf(ret->serial, sizeof(ret->serial), "-");
    if (!crt)
        return;
    subject_of(crt, ret->subject);
    if (gnutls_x509_crt_get_serial(crt, serial, &size) == 0)
        for (size_t i = 0; i < size; i++)
            (void)snprintf(ret->serial + 2 * i, sizeof(ret->serial) - 2 * i, "%02x", serial[i]);
    gnutls_x509_crt_deinit(crt);
}

int tls_session_check(void *session, const char *role, struct err *err)
{
    unsigned status;
    int rc = check_chain(session, role, &status, err);
    gnutls_x509_crt_t crt = rc < 0 ? NULL : first_crt(session);
    if (rc == 0 && !crt)
        rc = err_set(err, ERR_AUTH, "the client's certificate cannot be read");
    if (rc == 0)
        rc = check_role(crt, role, err);
    if (crt)
        gnutls_x509_crt_deinit(crt);
    return rc;
}
