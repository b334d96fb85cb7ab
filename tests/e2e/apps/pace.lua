-- A pause of so many milliseconds before each request of a connection.
function delay()
    return 20
end
