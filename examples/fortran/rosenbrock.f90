! Rosenbrock's valley from Fortran, over HTTP, in float64.
program rosenbrock
  use, intrinsic :: iso_c_binding, only: c_int8_t
  use, intrinsic :: iso_fortran_env, only: real64, int64
  use http, only: call_server, connect, bytes_of, decimal, argument, octets
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
    call get_environment_variable('ADAMD_URL', given, length)
    server = 'http://127.0.0.1:8000'
    if (length > 0) server = trim(given)
    server = argument(1, server)
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
end program
