# x86_64. Executes programs that arrive on descriptor 3, a packet to a program (machine.py).
        .intel_syntax noprefix
        .set MEMORY,  0x10000000
        .set BUFFER,  MEMORY
        .set SIZE,    0x40000
        .set CONTROL, MEMORY + 0x40000
        .set ROOM,    1088
        .set STATE,   MEMORY + 0x41000      # msghdr, iovec, report
        .set VECTOR,  STATE + 64
        .set REPORT,  STATE + 80
        .globl _start
_start:
receive:
        mov     edi, 3
        mov     esi, STATE
        mov     qword ptr [rsi + 16], VECTOR
        mov     qword ptr [rsi + 24], 1
        mov     qword ptr [rsi + 32], CONTROL
        mov     qword ptr [rsi + 40], ROOM
        mov     qword ptr [rsi + 64], BUFFER
        mov     qword ptr [rsi + 72], SIZE
        mov     edx, 0x40000000             # MSG_CMSG_CLOEXEC
        mov     eax, 47                     # recvmsg
        syscall
        test    rax, rax
        jle     leave
        mov     ebx, BUFFER
step:
        mov     eax, [rbx]
        cmp     eax, -1
        je      receive
        mov     ecx, [rbx + 4]              # bits 0-5: the argument is where a 32-bit value is
        mov     rdi, [rbx + 8]
        test    cl, 1
        jz      1f
        movsxd  rdi, dword ptr [rdi]
1:      mov     rsi, [rbx + 16]
        test    cl, 2
        jz      1f
        movsxd  rsi, dword ptr [rsi]
1:      mov     rdx, [rbx + 24]
        test    cl, 4
        jz      1f
        movsxd  rdx, dword ptr [rdx]
1:      mov     r10, [rbx + 32]
        test    cl, 8
        jz      1f
        movsxd  r10, dword ptr [r10]
1:      mov     r8, [rbx + 40]
        test    cl, 16
        jz      1f
        movsxd  r8, dword ptr [r8]
1:      mov     r9, [rbx + 48]
        test    cl, 32
        jz      1f
        movsxd  r9, dword ptr [r9]
1:      syscall
        mov     rcx, [rbx + 56]             # where the result goes
        test    rcx, rcx
        jz      1f
        mov     [rcx], eax
1:      mov     ecx, [rbx + 4]
        add     rbx, 64
        test    ch, 1                       # TRY: whatever comes of it
        jnz     step
        test    ch, 2                       # CHILD: only who sees 0 goes on
        jnz     2f
        test    ch, 4                       # WAIT: nothing read is the end
        jnz     3f
        cmp     rax, -4096
        jbe     step
fail:
        neg     eax
        mov     esi, REPORT
        mov     dword ptr [rsi], 0x45       # E
        mov     [rsi + 4], eax
        sub     rbx, BUFFER + 64
        mov     [rsi + 8], ebx
        mov     edi, 3
        mov     edx, 12
        mov     eax, 1                      # write
        syscall
leave:
        mov     edi, 249
        mov     eax, 231                    # exit_group
        syscall
2:      test    rax, rax
        jz      step
        js      fail
        xor     edi, edi
        mov     eax, 231
        syscall
3:      test    rax, rax
        jg      step
        jmp     leave
