! Rosenbrock's valley from Fortran, over HTTP by libcurl, in float64.
!
! A flat vector goes over the wire as it lies in memory (little-endian; the machines that are not, swap first). Element order
! inside a tensor is ours to choose: Fortran's, column-major, is as good as any, if we keep to it. curl_easy_setopt has C's "...";
! Fortran cannot say that, and calls it as if it had three parameters, which is right where both are passed alike
! (x86-64 and AArch64 on Linux; not AArch64 on macOS, where four lines of C must stand in between).
module http
  use, intrinsic :: iso_c_binding
  implicit none
  private
  public :: call_server, connect, text, octets

  integer(c_int), parameter :: opt_url = 10002, opt_method = 10036, opt_headers = 10023, opt_body = 10165, &
    opt_length = 60, opt_write = 20011, opt_no_signal = 99, info_status = 2097154
  character(*), parameter :: octets = 'application/octet-stream'
  type(c_ptr) :: handle = c_null_ptr
  integer(c_int8_t), allocatable, target :: received(:)

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

  ! One call; what got no answer, or 429 or 503, is sent again: a step has a number, and the creation a key.
  function call_server(method, url, kind, body, key) result(answer)
    character(*), intent(in) :: method, url, kind, key
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
    ignored = curl_easy_setopt(handle, opt_url, c_loc(c_url))
    ignored = curl_easy_setopt(handle, opt_method, c_loc(c_method))
    ignored = curl_easy_setopt(handle, opt_headers, headers)
    ignored = set_number(handle, opt_length, size(body, kind=c_long))
    do attempt = 1, 10
      received = [integer(c_int8_t) ::]
      status = 0
      ignored = curl_easy_setopt(handle, opt_body, c_loc(body))  ! COPYPOSTFIELDS, after its length
      failed = curl_easy_perform(handle)
      ignored = curl_easy_getinfo(handle, info_status, c_loc(status))
      if (failed == 0 .and. status /= 429 .and. status /= 503) exit
      call execute_command_line('sleep 0.5')
    end do
    call curl_slist_free_all(headers)
    answer = received
    if (failed /= 0) error stop 'no answer from the server'
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
end module

program rosenbrock
  use, intrinsic :: iso_c_binding, only: c_int8_t
  use, intrinsic :: iso_fortran_env, only: real64, int64
  use http, only: call_server, connect, octets
  implicit none
  real(real64) :: p(2)
  character(:), allocatable :: sessions, here, name
  integer(c_int8_t), allocatable :: answer(:)
  integer(c_int8_t) :: none(0)
  integer :: step

  call connect()
  sessions = server() // '/v1/sessions'
  name = unique()
  here = sessions // '/' // name
  answer = call_server('POST', sessions, 'application/json', bytes_of('{"name": "' // name // '", ' // &
    '"parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.05}}'), name)
  answer = call_server('GET', here // '/parameters', octets, none, '')
  p = transfer(answer, p)
  do step = 1, 20
    answer = call_server('PUT', here // '/steps/' // decimal(int(step, int64)), octets, &
      transfer(gradient(p), none), '')
    p = transfer(answer, p)
    print '(i0, 2(1x, es25.16e3))', step, p  ! 17 significant digits
  end do
  answer = call_server('DELETE', here, octets, none, '')

contains

  pure function gradient(p) result(g)
    real(real64), intent(in) :: p(2)
    real(real64) :: g(2), t
    t = p(2) - p(1) * p(1)
    g(1) = (-2.0_real64 * (1.0_real64 - p(1))) - ((400.0_real64 * p(1)) * t)
    g(2) = 200.0_real64 * t
  end function

  function server()
    character(:), allocatable :: server
    character(1000) :: given
    integer :: length
    call get_command_argument(1, given, length)
    if (length == 0) call get_environment_variable('ADAMD_URL', given, length)
    server = merge(given, 'http://127.0.0.1:8000' // repeat(' ', 979), length > 0)
    server = trim(server)
  end function

  function unique()
    character(:), allocatable :: unique
    integer(int64) :: now
    real(real64) :: chance
    call system_clock(now)
    call random_init(.false., .true.)
    call random_number(chance)
    unique = 'rosenbrock-fortran-' // decimal(now) // '-' // decimal(int(chance * 1e9_real64, int64))
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
end program
