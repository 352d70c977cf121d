! Calls of an adamd server from Fortran, over HTTP by libcurl, and what every program needs around them.
!
! A flat vector goes over the wire as it lies in memory (little-endian; the machines that are not, swap first). Element order
! inside a tensor is ours to choose: Fortran's, column-major, is as good as any, if we keep to it. curl_easy_setopt has C's "...";
! Fortran cannot say that, and calls it as if it had three parameters, which is right where both are passed alike
! (x86-64 and AArch64 on Linux; not AArch64 on macOS, where four lines of C must stand in between).
module http
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int64
  implicit none
  private
  public :: call_server, header, connect, text, bytes_of, decimal, argument, octets

  integer(c_int), parameter :: opt_url = 10002, opt_method = 10036, opt_headers = 10023, opt_body = 10165, &
    opt_length = 60, opt_write = 20011, opt_head = 20079, opt_no_signal = 99, info_status = 2097154
  character(*), parameter :: octets = 'application/octet-stream'
  type(c_ptr) :: handle = c_null_ptr
  integer(c_int8_t), allocatable :: received(:), head(:)

  interface
    function curl_easy_init() bind(c)
      import
      type(c_ptr) :: curl_easy_init
    end function
    function curl_easy_setopt(handle, option, value) bind(c)
      import
      type(c_ptr), value :: handle, value
      integer(c_int), value :: option
      integer(c_int) :: curl_easy_setopt
    end function
    function set_number(handle, option, value) bind(c, name='curl_easy_setopt')
      import
      type(c_ptr), value :: handle
      integer(c_int), value :: option
      integer(c_long), value :: value
      integer(c_int) :: set_number
    end function
    function set_function(handle, option, value) bind(c, name='curl_easy_setopt')
      import
      type(c_ptr), value :: handle
      integer(c_int), value :: option
      type(c_funptr), value :: value
      integer(c_int) :: set_function
    end function
    function curl_easy_getinfo(handle, info, value) bind(c)
      import
      type(c_ptr), value :: handle, value
      integer(c_int), value :: info
      integer(c_int) :: curl_easy_getinfo
    end function
    function curl_easy_perform(handle) bind(c)
      import
      type(c_ptr), value :: handle
      integer(c_int) :: curl_easy_perform
    end function
    function curl_slist_append(list, line) bind(c)
      import
      type(c_ptr), value :: list
      character(kind=c_char), intent(in) :: line(*)
      type(c_ptr) :: curl_slist_append
    end function
    subroutine curl_slist_free_all(list) bind(c)
      import
      type(c_ptr), value :: list
    end subroutine
  end interface

contains

  subroutine connect()
    integer(c_int) :: ignored
    handle = curl_easy_init()
    if (.not. c_associated(handle)) error stop 'libcurl does not start'
    ignored = set_number(handle, opt_no_signal, 1_c_long)
    ignored = set_function(handle, opt_write, c_funloc(keep))
    ignored = set_function(handle, opt_head, c_funloc(keep_head))
  end subroutine

  ! libcurl hands over a piece of the answer.
  function keep(piece, each, count, nothing) result(taken) bind(c)
    type(c_ptr), value :: piece, nothing
    integer(c_size_t), value :: each, count
    integer(c_size_t) :: taken
    integer(c_int8_t), pointer :: bytes(:)
    taken = each * count
    if (c_associated(nothing)) continue
    call c_f_pointer(piece, bytes, [taken])
    received = [received, bytes]
  end function

  ! The same for a line of the answer's head.
  function keep_head(line, each, count, nothing) result(taken) bind(c)
    type(c_ptr), value :: line, nothing
    integer(c_size_t), value :: each, count
    integer(c_size_t) :: taken
    integer(c_int8_t), pointer :: bytes(:)
    taken = each * count
    if (c_associated(nothing)) continue
    call c_f_pointer(line, bytes, [taken])
    head = [head, bytes]
  end function

  ! A header of the last answer; '' where it has none of this name, which is to be given in lower case.
  function header(name) result(value)
    character(*), intent(in) :: name
    character(:), allocatable :: value
    character(size(head)) :: lines, lower
    integer :: i, first
    lines = text(head)
    lower = lines
    do i = 1, len(lower)
      if (lower(i:i) >= 'A' .and. lower(i:i) <= 'Z') lower(i:i) = achar(iachar(lower(i:i)) + 32)
    end do
    value = ''
    first = index(lower, new_line('a') // name // ':', back=.true.)
    if (first == 0) return
    first = first + len(name) + 2
    value = trim(adjustl(lines(first:first + scan(lines(first:), char(13) // new_line('a')) - 2)))
  end function

  ! One call. What got no answer, 408, 429 or 503 is sent again for a minute: a step has a number, and the creation a key.
  ! chain goes as If-Match, metrics as Adamd-Metrics; a refusal ends the program, but for one with the code that is in allowed.
  function call_server(method, url, kind, body, key, chain, metrics, allowed) result(answer)
    character(*), intent(in) :: method, url, kind, key
    character(*), intent(in), optional :: chain, metrics, allowed
    integer(c_int8_t), intent(in), target :: body(:)
    integer(c_int8_t), allocatable :: answer(:)
    integer :: attempt
    integer(c_int) :: failed, ignored
    integer(c_long), target :: status
    type(c_ptr) :: headers
    character(len(url) + 1, c_char), target :: c_url
    character(len(method) + 1, c_char), target :: c_method

    c_url = url // c_null_char
    c_method = method // c_null_char
    headers = curl_slist_append(c_null_ptr, 'Content-Type: ' // kind // c_null_char)
    headers = curl_slist_append(headers, 'Accept: ' // octets // c_null_char)
    headers = curl_slist_append(headers, 'Expect:' // c_null_char)
    if (key /= '') headers = curl_slist_append(headers, 'Idempotency-Key: ' // key // c_null_char)
    if (present(chain)) headers = curl_slist_append(headers, 'If-Match: ' // chain // c_null_char)
    if (present(metrics)) headers = curl_slist_append(headers, 'Adamd-Metrics: ' // metrics // c_null_char)
    ignored = curl_easy_setopt(handle, opt_url, c_loc(c_url))
    ignored = curl_easy_setopt(handle, opt_method, c_loc(c_method))
    ignored = curl_easy_setopt(handle, opt_headers, headers)
    ignored = set_number(handle, opt_length, size(body, kind=c_long))
    do attempt = 1, 120
      received = [integer(c_int8_t) ::]
      head = [integer(c_int8_t) ::]
      status = 0
      ignored = curl_easy_setopt(handle, opt_body, c_loc(body))  ! COPYPOSTFIELDS, after its length
      failed = curl_easy_perform(handle)
      ignored = curl_easy_getinfo(handle, info_status, c_loc(status))
      if (failed == 0 .and. all(status /= [408, 429, 503])) exit
      call execute_command_line('sleep 0.5')
    end do
    call curl_slist_free_all(headers)
    answer = received
    if (failed /= 0) error stop 'no answer from the server'
    if (present(allowed)) then
      if (index(text(answer), allowed) > 0) return
    end if
    if (status >= 300) then
      print '(a)', text(answer)
      error stop 'the server refused'
    end if
  end function

  pure function text(bytes)
    integer(c_int8_t), intent(in) :: bytes(:)
    character(size(bytes)) :: text
    integer :: i
    do i = 1, size(bytes)
      text(i:i) = achar(iand(int(bytes(i)), 255))
    end do
  end function
  pure function decimal(number)
    integer(int64), intent(in) :: number
    character(:), allocatable :: decimal
    character(20) :: buffer
    write (buffer, '(i0)') number
    decimal = trim(buffer)
  end function

  pure function bytes_of(string) result(bytes)
    character(*), intent(in) :: string
    integer(c_int8_t), allocatable :: bytes(:)
    bytes = transfer(string, [0_c_int8_t])
  end function

  ! A word of the command line, or what is to be taken where there is none.
  function argument(number, otherwise) result(word)
    integer, intent(in) :: number
    character(*), intent(in) :: otherwise
    character(:), allocatable :: word
    character(1000) :: given
    integer :: length
    call get_command_argument(number, given, length)
    word = otherwise
    if (length > 0) word = trim(given)
  end function
end module
