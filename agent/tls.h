/* Certificates of agents and coordinators (GnuTLS; agent/tls.c is the only file that includes it):
 * our own, and the rules for a peer's. Its chain leads to the CA of [tls], it is valid today and
 * made for its end of a connection, and its role, an OU of the subject or a URI "tidemark:ROLE" of
 * the alternative names, is the one that may be here. Functions on a struct tls may be called on
 * any thread once it is loaded. */
#ifndef TIDEMARK_AGENT_TLS_H
#define TIDEMARK_AGENT_TLS_H

#include <time.h>

#include "io/err.h"

struct tls;

struct tls_files {
    const char *certificate_file, *key_file, *ca_file; /* PEM */
};

#define TLS_ROLE_COORDINATOR "coordinator" /* may call agents */
#define TLS_ROLE_AGENT       "agent"       /* answers, for the node that the certificate names */

/* Reads the files. ERR_CONFIG for what cannot be read or is no PEM; ERR_AUTH for a key that others
 * may use, that is encrypted, or that is another certificate's. Release with tls_free(). */
int tls_load(const struct tls_files *files, struct tls **ret, struct err *err);
/* Overwrites the key. Accepts NULL. */
void tls_free(struct tls *tls);

/* PEM as it was read, for a TLS library; borrowed. The key is overwritten by tls_forget_key(). */
char *tls_certificate_pem(const struct tls *tls);
char *tls_key_pem(const struct tls *tls);
char *tls_ca_pem(const struct tls *tls);
void tls_forget_key(struct tls *tls);

/* ERR_AUTH when peers would refuse our certificate in this role. *ret_expires: when it ends. */
int tls_check_own(const struct tls *tls, const char *role, time_t *ret_expires, struct err *err);

/* ERR_AUTH when this certificate (PEM, its chain was verified) has another role. */
int tls_check_role(const char *pem, const char *role, struct err *err);

/* --- the server's end: a session is a gnutls_session_t -------------------------------------- */

enum { TLS_SUBJECT_MAX = 256, TLS_SERIAL_MAX = 64 };

struct tls_peer {
    char subject[TLS_SUBJECT_MAX]; /* RFC 4514; "-" without a certificate */
    char serial[TLS_SERIAL_MAX];   /* hex */
};

/* Before its handshake, which has to end within 10 s from its first byte, and fails, with an alert
 * and a line in the log, for a peer without a good certificate. tls outlives the session. */
void tls_session_begin(void *session, struct tls *tls);
/* Who is at the other end. */
void tls_session_peer(void *session, struct tls_peer *ret);
/* After the handshake, for every request: the certificate may have expired since. ERR_AUTH. */
int tls_session_check(void *session, const char *role, struct err *err);

#endif
