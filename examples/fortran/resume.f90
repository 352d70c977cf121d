! A run that survives: killed and started again, it goes on where it was; it logs its loss, and stops by a rule.
!
! examples/fortran/resume http://127.0.0.1:8000 run-7
program resume
  use, intrinsic :: iso_c_binding, only: c_int8_t
  use, intrinsic :: iso_fortran_env, only: real64, int64, output_unit
  use http, only: call_server, header, connect, bytes_of, decimal, argument, octets
  implicit none
  character(:), allocatable :: here, sessions, name
  character(24) :: written
  integer(c_int8_t), allocatable :: answer(:)
  integer(c_int8_t) :: none(0)
  real(real64) :: p(2), g(2), loss
  integer(int64) :: step, now

  call connect()
  call system_clock(now)
  name = argument(2, 'run-7')
  sessions = argument(1, 'http://127.0.0.1:8000') // '/v1/sessions'
  here = sessions // '/' // name
  ! session_exists: this run has begun already.
  answer = call_server('POST', sessions, 'application/json', bytes_of('{"name": "' // name // '", ' // &
    '"parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.3, ' // &
    '"stop": {"target_loss": 0.1, "max_steps": 1000}}}'), name // '-' // decimal(now), allowed='"session_exists"')
  answer = call_server('GET', here // '/parameters', octets, none, '')
  do while (header('adamd-stop') == '')
    p = transfer(answer, p)
    call differentiate(p, loss, g)
    written = header('adamd-step')
    read (written, *) step
    step = step + 1
    write (written, '(es24.16e3)') loss  ! 17 significant digits
    answer = call_server('PUT', here // '/steps/' // decimal(step), octets, transfer(g, none), '', &
      chain=header('etag'), metrics='{"loss": ' // trim(adjustl(written)) // '}')
    p = transfer(answer, p)
    print '(i0, 3(1x, es24.16e3))', step, loss, p
    flush (output_unit)
  end do
  print '(2a)', 'stop ', header('adamd-stop')

contains

  pure subroutine differentiate(p, loss, g)
    real(real64), intent(in) :: p(2)
    real(real64), intent(out) :: loss, g(2)
    real(real64) :: a, t
    a = 1.0_real64 - p(1)
    t = p(2) - p(1) * p(1)
    loss = a * a + 100.0_real64 * (t * t)
    g(1) = (-2.0_real64 * a) - ((400.0_real64 * p(1)) * t)
    g(2) = 200.0_real64 * t
  end subroutine
end program
