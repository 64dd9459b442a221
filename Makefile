# Tidemark. One non-recursive Makefile; `make help` lists the targets.
#
#   DEV=1      warnings are errors (CI and `make check` set it)
#   SAN=asan   build/asan: AddressSanitizer + UBSan      SAN=tsan   build/tsan: ThreadSanitizer
#
# Layout: every io/*.c and agent/*.c goes into a library, except programs' mains, listed below.
# Archives plus --as-needed keep each program's libraries to what it really uses: tidemark-wal must
# not load libcurl, libpq or jansson.

VARIANT := $(if $(SAN),$(SAN),release)
B       := build/$(VARIANT)
CC      ?= gcc

WARN := -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wcast-qual -Wformat=2 -Wvla \
        -Wstrict-prototypes -Wmissing-prototypes -Wswitch-enum -Wundef -Wwrite-strings \
        -Wpointer-arith -Wno-format-truncation
PGINC  = $(shell pg_config --includedir 2>/dev/null || echo /usr/include/postgresql)
CFLAGS_ALL := -std=gnu17 -D_GNU_SOURCE -I. -g -O2 -fPIE -fstack-protector-strong -fno-common \
        -ffunction-sections -fdata-sections -MMD -MP $(WARN) $(if $(DEV),-Werror)
LDFLAGS_ALL := -pie -Wl,-z,relro,-z,now -Wl,--as-needed -Wl,--gc-sections -pthread
ifeq ($(SAN),asan)
# -O1: a third less time to compile than -O2, and the tests are not slower for it.
CFLAGS_ALL := $(filter-out -O2,$(CFLAGS_ALL)) -O1
CFLAGS_ALL += -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
LDFLAGS_ALL += -fsanitize=address,undefined
else ifeq ($(SAN),tsan)
CFLAGS_ALL += -fsanitize=thread
LDFLAGS_ALL += -fsanitize=thread
else ifeq ($(SAN),fuzz)
# clang, for libFuzzer; its warnings are not ours.
CC := clang
CFLAGS_ALL := $(filter-out $(WARN) -Werror,$(CFLAGS_ALL)) -w -O1 -fno-omit-frame-pointer \
        -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
LDFLAGS_ALL += -fsanitize=address,undefined
else
CFLAGS_ALL += -D_FORTIFY_SOURCE=2
endif
CFLAGS_ALL += $(CFLAGS)
LDFLAGS_ALL += $(LDFLAGS)

VERSION := 0.1.0
CFLAGS_ALL += -DTIDEMARK_VERSION='"$(VERSION)"'

IO_MAINS    := io/guardian.c
AGENT_MAINS := agent/main.c
IO_SRC      := $(filter-out $(IO_MAINS) %.bpf.c,$(wildcard io/*.c))
AGENT_SRC   := $(filter-out $(AGENT_MAINS),$(wildcard agent/*.c))
# tools/cmd_*.c are the verbs of `tidemark`; every other tools/*.c is a program of its own.
CMD_SRC     := $(wildcard tools/cmd_*.c)

LIBS := -luring -lblkid -llz4 -lxxhash -lcrypto -lcurl -lpq -linih -lmicrohttpd -lgnutls \
        -ljansson -lbpf

PROGRAMS := tidemark-guardian tidemark-agent tidemark-coordinator tidemark tidemark-wal tidemark-wal-worker tidemark-inspect

# Messages are cut on purpose where they are too long (-Wno-format-truncation above).

IO_OBJ    := $(IO_SRC:%.c=$(B)/%.o) $(B)/io/marks_object.o
AGENT_OBJ := $(AGENT_SRC:%.c=$(B)/%.o)
CMD_OBJ   := $(CMD_SRC:%.c=$(B)/%.o)
ARCHIVES  := $(B)/libcmd.a $(B)/libagent.a $(B)/libio.a

all: deps-check $(PROGRAMS:%=$(B)/%)

help:
	@grep -E '^#:' $(MAKEFILE_LIST) | sed 's/^#: //'
#: all            build everything into build/release
#: deps           install the build and run-time packages (Debian 12)
#: demo           the main job on an embedded repository, with a private server
#:                STORE=s3: in buckets of a private object store (installs Ceph)
#:                STORE=swift: the same on OpenStack Swift (installs it)
#: demo-cluster   a primary and two standbys go back to a tag together
#: check          all tests in their short form; ends with "N passed, N failed, N skipped"
#:                TESTS='store pg/' runs only tests whose name contains one of these
#: campaign       the long loops whole
#: bench          micro-benchmarks of the pipelines (bench/restore-vs-pgbackrest: whole restores)
#: install        DESTDIR= PREFIX=/usr SYSCONFDIR=/etc
#: fuzz           build the libFuzzer targets into build/fuzz
#: fuzz-smoke     run each of them for FUZZ_SECONDS=10
#: generated      sample configuration and man pages, from the tables in the programs
#: clean          remove build/

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -c -o $@ $<

# The program for the kernel is the same in every variant. -g makes the BTF that libbpf needs.
build/bpf/%.bpf.o: io/%.bpf.c
	@mkdir -p $(@D)
	clang -std=gnu17 -O2 -g -target bpf -mcpu=v3 -I. -idirafter /usr/include/$$(uname -m)-linux-gnu \
	    -Wall $(if $(DEV),-Werror) -MMD -MP -c -o $@ $<
$(B)/io/marks_object.o: io/marks_object.S build/bpf/marks.bpf.o
	@mkdir -p $(@D)
	$(CC) -c -o $@ $<

$(B)/agent/pg_child.o $(B)/agent/pg_try.o: CFLAGS_ALL += -isystem $(PGINC)

$(B)/libio.a: $(IO_OBJ)
	@rm -f $@ && ar crs $@ $^
$(B)/libagent.a: $(AGENT_OBJ)
	@rm -f $@ && ar crs $@ $^
$(B)/libcmd.a: $(CMD_OBJ)
	@rm -f $@ && ar crs $@ $^

$(B)/tidemark-guardian: $(B)/io/guardian.o
$(B)/tidemark-agent:    $(B)/agent/main.o $(ARCHIVES)
$(B)/tidemark-coordinator: $(B)/agent/main.o $(ARCHIVES)
$(B)/tidemark:          $(B)/tools/tidemark.o $(ARCHIVES)
$(B)/tidemark-wal:      $(B)/tools/wal.o $(ARCHIVES)
$(B)/tidemark-wal-worker: $(B)/tools/wal_worker.o $(ARCHIVES)
$(B)/tidemark-inspect:  $(B)/tools/inspect.o $(ARCHIVES)

$(PROGRAMS:%=$(B)/%):
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)

objects: $(IO_OBJ) $(AGENT_OBJ) $(CMD_OBJ)

# --- tests: tests/unit/t_*.c are TAP programs ------------------------------------------------------
UNIT_SRC := $(wildcard tests/unit/t_*.c)
UNIT     := $(UNIT_SRC:%.c=$(B)/%)
$(UNIT): $(B)/%: $(B)/%.o $(ARCHIVES)
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)
unit: $(UNIT) test-tools

# tests/*/tool_*.c are small programs that integration tests drive.
TOOL_SRC := $(wildcard tests/*/tool_*.c)
TOOLS    := $(TOOL_SRC:%.c=$(B)/%)
$(TOOLS): $(B)/%: $(B)/%.o $(ARCHIVES)
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)
$(B)/tests/sim/tool_powercut $(B)/tests/sim/tool_slow: LIBS += -lfuse3
test-tools: $(TOOLS) fuzz-replay

# --- fuzzing: tests/fuzz/fuzz_<name>.c with its corpus in tests/fuzz/corpus/<name>/ ----------------
# clang links them with libFuzzer into build/fuzz, gcc with a main that runs files.
FUZZ_SRC    := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ        := $(patsubst tests/fuzz/%.c,$(B)/%,$(FUZZ_SRC))
FUZZ_REPLAY := $(FUZZ_SRC:%.c=$(B)/%)
# What the parsers reach, a quarter of the sources: clang with its sanitizers needs 2 s a file. When
# a parser begins to use another file, linking fails and that file is added here.
FUZZ_PARTS := address api_request cluster_copy cluster_lock conf conf_print conf_table conf_value job_cluster \
        job_conf job_control job_rules job_start json log nearest pg_control pg_names pg_pid_file pg_server \
        process program record record_check record_fields \
        restore_load restore_permit restore_request restore_time snapshot_ids wal wal_command wal_history \
        wal_name wal_page wal_report
FUZZ_PARTS := $(FUZZ_PARTS:%=agent/%) $(addprefix io/,codec crypt err file format \
        format_keys format_table format_wal hash http http_header http_lane http_lane_wait http_mutual \
        http_server http_stranger http_transfer id key_secret key_wrap keyring mountinfo repo ring ring_inject s3_judge s3_request \
        s3_service s3_watch s3_xml s3_xml_escape seal secret sigv4 store store_file store_file_clock store_file_lane store_file_list \
        store_file_remove store_lock \
        store_s3 \
        store_s3_lane store_s3_lock store_s3_remove store_s3_versions table)
$(B)/libfuzzed.a: $(FUZZ_PARTS:%=$(B)/%.o)
	@rm -f $@ && ar crs $@ $^
$(FUZZ): $(B)/%: $(B)/tests/fuzz/%.o $(B)/libfuzzed.a
	$(CC) $(LDFLAGS_ALL) -fsanitize=fuzzer -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)
$(FUZZ_REPLAY): $(B)/%: $(B)/%.o $(B)/tests/fuzz/replay.o $(ARCHIVES)
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)
fuzz-programs: $(FUZZ)
fuzz-replay: $(FUZZ_REPLAY)
fuzz:
	@$(MAKE) --no-print-directory SAN=fuzz fuzz-programs
fuzz-smoke: fuzz
	@for program in $(FUZZ_SRC:tests/fuzz/fuzz_%.c=%); do echo "# $$program"; \
	python3 tests/lib/fuzz.py build/fuzz/fuzz_$$program tests/fuzz/corpus/$$program || exit 1; done

# --- benchmarks ------------------------------------------------------------------------------------
BENCH := $(B)/bench/bench-pipeline
$(BENCH): $(B)/bench/bench-pipeline.o $(B)/bench/bench_io.o $(ARCHIVES)
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)
bench-programs: $(BENCH)
bench: deps bench-programs
	@bench/bench-pipeline.sh

deps:
	@tools/install-deps
deps-check:
	@tools/install-deps --check || tools/install-deps

# What tests on object stores and with Patroni need; they are skipped, aloud, where it cannot be had.
deps-ceph:
	@tools/install-deps --ceph
deps-swift:
	@tools/install-deps --swift
deps-stores:
	@tools/install-deps --optional --ceph --swift
	@tools/install-deps --optional --patroni

demo: deps $(if $(filter s3,$(STORE)),deps-ceph) $(if $(filter swift,$(STORE)),deps-swift)
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@tests/demo.sh $(if $(STORE),--store=$(STORE))

demo-cluster: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@tests/demo.sh --cluster

check: deps deps-stores
	@tests/check.sh $(TESTS)
campaign: deps deps-stores
	@tests/check.sh --campaign $(TESTS)

# --- what is made from the tables in the programs, and committed: tests/cli compares ---------------
generated: $(B)/tidemark $(B)/tidemark-agent
	$(B)/tidemark-agent --print-sample >conf/tidemark.conf
	$(B)/tidemark --print-man >$(B)/verbs.roff
	$(B)/tidemark-agent --print-man >$(B)/options.roff
	sed -e 's/@VERSION@/$(VERSION)/' -e '/^@VERBS@$$/{r $(B)/verbs.roff' -e 'd}' \
	    conf/man/tidemark.1.in >conf/man/tidemark.1
	sed -e 's/@VERSION@/$(VERSION)/' -e '/^@OPTIONS@$$/{r $(B)/options.roff' -e 'd}' \
	    conf/man/tidemark.conf.5.in >conf/man/tidemark.conf.5

# Everything that starts another program finds it beside itself or in ../lib/tidemark.
# What an administrator edits is not below PREFIX. The programs look for it in /etc; the unit names
# another place to the agent, people and archive_command do so with TIDEMARK_CONFIG.
PREFIX ?= /usr
SYSCONFDIR ?= /etc
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/tidemark \
	    $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d \
	    $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5 \
	    $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/tidemark/capture \
	    $(DESTDIR)$(PREFIX)/share/tidemark/schema \
	    $(DESTDIR)$(SYSCONFDIR)/tidemark
	install -m 755 $(PROGRAMS:%=$(B)/%) $(DESTDIR)$(PREFIX)/bin
	mv $(DESTDIR)$(PREFIX)/bin/tidemark-guardian $(DESTDIR)$(PREFIX)/lib/tidemark/
	sed -e 's|@PREFIX@|$(PREFIX)|' $(if $(filter-out /etc,$(SYSCONFDIR)),-e \
	    '/^Type=/a Environment=TIDEMARK_CONFIG=$(SYSCONFDIR)/tidemark/tidemark.conf') \
	    conf/systemd/tidemark-agent.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/tidemark-agent.service
	sed -e 's|@PREFIX@|$(PREFIX)|' $(if $(filter-out /etc,$(SYSCONFDIR)),-e \
	    '/^Type=/a Environment=TIDEMARK_CONFIG=$(SYSCONFDIR)/tidemark/coordinator.conf') \
	    conf/systemd/tidemark-coordinator.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/tidemark-coordinator.service
	sed -e 's|@PREFIX@|$(PREFIX)|' $(if $(filter-out /etc,$(SYSCONFDIR)),-e \
	    '/^Type=/a Environment=TIDEMARK_CONFIG=$(SYSCONFDIR)/tidemark/tidemark.conf') \
	    conf/systemd/tidemark-expire.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/tidemark-expire.service
	install -m 644 conf/systemd/tidemark-expire.timer $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 644 conf/systemd/tidemark.sysusers \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d/tidemark.conf
	install -m 644 conf/man/tidemark.1 conf/man/tidemark-wal.1 conf/man/tidemark-inspect.1 \
	    $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 conf/man/tidemark.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 conf/man/tidemark-agent.8 conf/man/tidemark-coordinator.8 \
	    $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 $(wildcard conf/capture/*) $(DESTDIR)$(PREFIX)/share/tidemark/capture
	install -m 644 conf/openapi.yaml conf/tidemark.conf conf/patroni.yml.example \
	    $(DESTDIR)$(PREFIX)/share/tidemark
	install -m 644 conf/schema/*.json $(DESTDIR)$(PREFIX)/share/tidemark/schema
	[ -e $(DESTDIR)$(SYSCONFDIR)/tidemark/tidemark.conf ] || \
	    install -m 644 conf/tidemark.conf $(DESTDIR)$(SYSCONFDIR)/tidemark/tidemark.conf

clean:
	rm -rf build

-include $(shell [ -d $(B) ] && find $(B) build/bpf -name '*.d' 2>/dev/null)

.PHONY: all objects help deps deps-check deps-ceph deps-swift deps-stores demo demo-cluster check campaign \
	unit test-tools fuzz fuzz-programs fuzz-replay fuzz-smoke bench generated clean install
