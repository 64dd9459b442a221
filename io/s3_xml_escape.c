/* Texts into XML: see s3_xml.h. */
#include "io/s3_xml.h"

bool s3_xml_escape(const char *text, char *to, size_t size)
{
    size_t at = strlen(to);
    for (; *text; text++) {
        char plain[2] = {*text, '\0'};
        const char *put = *text == '&'   ? "&amp;"
                          : *text == '<' ? "&lt;"
                          : *text == '>' ? "&gt;"
                          : *text == '"' ? "&quot;"
                                         : plain;
        size_t len = strlen(put);
        if (at + len >= size)
            return false;
        memcpy(to + at, put, len + 1);
        at += len;
    }
    return true;
}
