// aarch64. Executes programs that arrive on descriptor 3, a packet to a program (machine.py).
        .set MEMORY,  0x10000000
        .set SIZE,    0x40000
        .set ROOM,    1088
// From STATE, at MEMORY + 0x41000: msghdr, iovec, report.
        .set VECTOR,  64
        .set REPORT,  80
        .globl _start
_start:
        movz    x20, #0x1004, lsl 16        // MEMORY + 0x40000: control
        add     x21, x20, #0x1000           // STATE
receive:
        movz    x19, #0x1000, lsl 16        // MEMORY, where the packet goes
        add     x9, x21, #VECTOR
        mov     x10, #1
        stp     x9, x10, [x21, #16]
        mov     x10, #ROOM
        stp     x20, x10, [x21, #32]
        mov     x10, #SIZE
        stp     x19, x10, [x21, #VECTOR]
        mov     x0, #3
        mov     x1, x21
        movz    x2, #0x4000, lsl 16         // MSG_CMSG_CLOEXEC
        mov     x8, #212                    // recvmsg
        svc     #0
        cmp     x0, #0
        b.le    leave
step:
        ldp     w8, w9, [x19]               // bits 0-5: the argument is where a 32-bit value is
        cmn     w8, #1
        b.eq    receive
        ldp     x0, x1, [x19, #8]
        ldp     x2, x3, [x19, #24]
        ldp     x4, x5, [x19, #40]
        tbz     w9, #0, 1f
        ldrsw   x0, [x0]
1:      tbz     w9, #1, 1f
        ldrsw   x1, [x1]
1:      tbz     w9, #2, 1f
        ldrsw   x2, [x2]
1:      tbz     w9, #3, 1f
        ldrsw   x3, [x3]
1:      tbz     w9, #4, 1f
        ldrsw   x4, [x4]
1:      tbz     w9, #5, 1f
        ldrsw   x5, [x5]
1:      svc     #0
        ldr     x10, [x19, #56]             // where the result goes
        cbz     x10, 1f
        str     w0, [x10]
1:      add     x19, x19, #64
        tbnz    w9, #8, step                // TRY: whatever comes of it
        tbnz    w9, #9, 2f                  // CHILD: only who sees 0 goes on
        tbnz    w9, #10, 3f                 // WAIT: nothing read is the end
        cmn     x0, #4096
        b.ls    step
fail:
        mov     w10, #0x45                  // E
        neg     w11, w0
        stp     w10, w11, [x21, #REPORT]
        movz    w10, #0x1000, lsl 16
        sub     w10, w19, w10
        sub     w10, w10, #64
        str     w10, [x21, #REPORT + 8]
        mov     x0, #3
        add     x1, x21, #REPORT
        mov     x2, #12
        mov     x8, #64                     // write
        svc     #0
leave:
        mov     x0, #249
4:      mov     x8, #94                     // exit_group
        svc     #0
2:      cbz     x0, step
        tbnz    x0, #63, fail
        mov     x0, #0
        b       4b
3:      cmp     x0, #0
        b.gt    step
        b       leave
