/* The compiled io/marks.bpf.c, as bytes of the program. */
    .section .rodata
    .balign 8
    .global marks_object
marks_object:
    .incbin "build/bpf/marks.bpf.o"
    .global marks_object_end
marks_object_end:
    .section .note.GNU-stack, "", %progbits
